// SPDX-License-Identifier: Apache-2.0
// Reading a logit by (row, stream, candidate), the one place that knows how logits are stored.
#pragma once

#include <cstdint>

#include "deterministic_math.h"

namespace unison {

// Storage of the two 16-bit formats. Conversion by integer operations vectorizes on every
// instruction set and is exact.
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

template <typename storage_t>
struct LogitTensor {
  const storage_t* data;
  int64_t row_stride;
  int64_t stream_stride;  // candidates are contiguous

  UNISON_INLINE float operator()(int64_t row, int64_t stream, int64_t candidate) const {
    return to_float(data[row * row_stride + stream * stream_stride + candidate]);
  }
};

}  // namespace unison
