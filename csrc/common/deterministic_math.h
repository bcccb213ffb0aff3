// SPDX-License-Identifier: Apache-2.0
// Float32 arithmetic that gives the same bits in C++, in CUDA and in PyTorch's elementwise operators.
//
// The C library, the CUDA library and PyTorch's vector library each round log and exp differently in
// the last bits, which would make sampled tokens depend on the device. Here both are polynomials
// evaluated in a fixed order with IEEE additions and multiplications only. Contraction into fused
// multiply-add would change bits: host code must be compiled with -ffp-contract=off; device code uses
// the intrinsics that are never contracted. vllm/unison/ops/deterministic_math.py holds the
// same formulas as tensor expressions; tests compare the two bit for bit.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define UNISON_INLINE __host__ __device__ __forceinline__
#else
#define UNISON_INLINE inline __attribute__((always_inline))
#endif

namespace unison {

UNISON_INLINE float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

UNISON_INLINE float subtract(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fsub_rn(a, b);
#else
  return a - b;
#endif
}

UNISON_INLINE float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

UNISON_INLINE float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

UNISON_INLINE float int_to_float(int32_t value) {
#if defined(__CUDA_ARCH__)
  return __int2float_rn(value);
#else
  return static_cast<float>(value);
#endif
}

UNISON_INLINE int32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(value);
#else
  return __builtin_bit_cast(int32_t, value);
#endif
}

UNISON_INLINE float bits_float(int32_t bits) {
#if defined(__CUDA_ARCH__)
  return __int_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

// condition ? a : b, where both are always computed: compilers may otherwise move the arithmetic of one
// side behind a branch, and then not vectorize the loop around it.
UNISON_INLINE float select(bool condition, float a, float b) {
  const int32_t mask = -static_cast<int32_t>(condition);
  return bits_float((float_bits(a) & mask) | (float_bits(b) & ~mask));
}

constexpr int32_t kInfinityBits = 0x7f800000;
UNISON_INLINE float infinity() { return bits_float(kInfinityBits); }
UNISON_INLINE float negative_infinity() { return bits_float(static_cast<int32_t>(0xff800000u)); }

// Signed integers in the order of the floats they stand for. Adding zero first turns -0 into +0, so
// that floats which compare equal have equal keys. NaN has no place in the order.
UNISON_INLINE int32_t order_key(float value) {
  const int32_t bits = float_bits(add(value, 0.0f));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

UNISON_INLINE float order_key_value(int32_t key) {
  return bits_float(key ^ ((key >> 31) & 0x7fffffff));
}

constexpr float kLogTwoHigh = 0x1.62ep-1f;       // log(2), low bits cleared: exact times an exponent
constexpr float kLogTwoLow = 0x1.0bfbe8p-15f;    // log(2) - kLogTwoHigh
constexpr float kLogTwoReciprocal = 0x1.715476p+0f;

// Natural logarithm of a positive normal float32, within 1 ulp of the real one.
//
// x = 2^e * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), log(1 + f) = f - f^2/2 + f^3 P(f). P is the
// minimax polynomial of degree 7 for the relative error of the whole (5.8e-9 before rounding).
UNISON_INLINE float deterministic_log(float x) {
  constexpr int32_t kSqrtHalfBits = 0x3f3504f3;
  const int32_t bits = float_bits(x);
  const int32_t exponent = (bits - kSqrtHalfBits) >> 23;
  const float f = subtract(bits_float(bits - exponent * (1 << 23)), 1.0f);
  const float e = int_to_float(exponent);
  float p = -0x1.38b58ap-4f;
  p = add(multiply(p, f), 0x1.055b72p-3f);
  p = add(multiply(p, f), -0x1.0d8542p-3f);
  p = add(multiply(p, f), 0x1.22da1cp-3f);
  p = add(multiply(p, f), -0x1.547244p-3f);
  p = add(multiply(p, f), 0x1.99a008p-3f);
  p = add(multiply(p, f), -0x1.000226p-2f);
  p = add(multiply(p, f), 0x1.555554p-2f);
  const float square = multiply(f, f);
  float tail = multiply(multiply(square, f), p);
  tail = add(tail, multiply(e, kLogTwoLow));
  tail = subtract(tail, multiply(square, 0.5f));
  return add(add(tail, f), multiply(e, kLogTwoHigh));
}

// exp(x) within 1 ulp for x in [-87, 88]; arguments outside are moved to the nearer end, so that the
// result is always a positive normal float32. NaN gives exp(-87).
//
// x = n log(2) + r, exp(r) = 1 + r + r^2 P(r), P of degree 4 (3.1e-9 before rounding).
UNISON_INLINE float deterministic_exp(float x) {
  constexpr float kRoundToInteger = 0x1.8p+23f;  // adding and subtracting it rounds to an integer
  x = select(x > -87.0f, x, -87.0f);
  x = select(x < 88.0f, x, 88.0f);
  const float n =
      subtract(add(multiply(x, kLogTwoReciprocal), kRoundToInteger), kRoundToInteger);
  float r = subtract(x, multiply(n, kLogTwoHigh));
  r = subtract(r, multiply(n, kLogTwoLow));
  float p = 0x1.6a2256p-10f;
  p = add(multiply(p, r), 0x1.123b04p-7f);
  p = add(multiply(p, r), 0x1.5558f8p-5f);
  p = add(multiply(p, r), 0x1.555490p-3f);
  p = add(multiply(p, r), 0x1.fffffcp-2f);
  const float mantissa = add(add(multiply(multiply(r, r), p), r), 1.0f);
  return bits_float(float_bits(mantissa) + static_cast<int32_t>(n) * (1 << 23));
}

// Standard Gumbel noise -log(-log(u)) from 32 random bits, u = 1 - (word + 1/2) / 2^32.
//
// The argmax is decided by large noise, where u is near 1 and -log(u) is nearly 1 - u. A float32 u
// would resolve 1 - u in steps of 2^-24 there and end at a noise of 17.3. So u is never formed: the
// word is folded to the nearer end of (0, 1), which leaves a float32 tail of full relative precision
// at both ends, and near 1 the logarithm is corrected for the rounding of 1 - tail. The noise then
// reaches from -3.13 to 22.87 with every one of the 2^32 words in order.
UNISON_INLINE float gumbel_noise(uint32_t word) {
  const int32_t fold = static_cast<int32_t>(word) >> 31;  // -1 where u < 1/2
  const int32_t distance = static_cast<int32_t>(word) ^ fold;
  const float tail = multiply(add(int_to_float(distance), 0.5f), 0x1p-32f);  // min(u, 1 - u)
  const float complement = subtract(1.0f, tail);
  const float lost = subtract(subtract(1.0f, complement), tail);
  const float u = select(fold != 0, tail, complement);
  // d log(u) = lost / u; leaving out the division costs at most half an ulp of the sum.
  const float correction = select(fold != 0, 0.0f, lost);
  const float exponential = -add(deterministic_log(u), correction);
  return -deterministic_log(exponential);
}

constexpr float kWeightScale = 0x1p+30f;

// Unnormalized probability of a score, as an integer: sums of it are exact and so do not depend on
// the order of summation. The largest score weighs 2^30; 2^18 candidates sum to at most 2^48.
UNISON_INLINE int32_t integer_weight(float score, float largest) {
  return static_cast<int32_t>(
      multiply(deterministic_exp(subtract(score, largest)), kWeightScale));
}

}  // namespace unison
