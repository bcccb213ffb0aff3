// SPDX-License-Identifier: Apache-2.0
// The three floating-point formats that tensors are stored in, to float32 and back.
//
// Conversion by integer operations vectorizes on every instruction set, and is exact one way and
// rounds to nearest even the other way on every device.
#pragma once

#include <cstdint>

#include "common/deterministic_math.h"

namespace unison {

struct Bfloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

UNISON_INLINE float to_float(float value) { return value; }

UNISON_INLINE float to_float(Bfloat16Bits value) {
  return bits_float(static_cast<int32_t>(static_cast<uint32_t>(value.bits) << 16));
}

UNISON_INLINE float to_float(Float16Bits value) {
  const int32_t sign = static_cast<int32_t>(static_cast<uint32_t>(value.bits & 0x8000) << 16);
  const int32_t magnitude = value.bits & 0x7fff;
  const int32_t exponent_bias = magnitude >= 0x7c00 ? 224 : 112;  // infinity and NaN, else finite
  const int32_t normal = (magnitude << 13) + (exponent_bias << 23);
  const int32_t subnormal = float_bits(multiply(int_to_float(magnitude), 0x1p-24f));
  return bits_float((magnitude >= 0x0400 ? normal : subnormal) | sign);
}

UNISON_INLINE void from_float(float value, float& stored) { stored = value; }

UNISON_INLINE void from_float(float value, Bfloat16Bits& stored) {
  const uint32_t bits = static_cast<uint32_t>(float_bits(value));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  stored.bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
}

UNISON_INLINE void from_float(float value, Float16Bits& stored) {
  const uint32_t bits = static_cast<uint32_t>(float_bits(value));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // The numbers around one half are as far apart as float16's subnormal ones.
  const uint32_t shifted =
      static_cast<uint32_t>(float_bits(add(bits_float(static_cast<int32_t>(magnitude)), 0.5f)));
  const uint32_t subnormal = shifted - 0x3f000000u;
  uint32_t result = magnitude >= 0x38800000u ? normal : subnormal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // halfway to what would come after 65504
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  stored.bits = static_cast<uint16_t>(result | sign);
}

}  // namespace unison
