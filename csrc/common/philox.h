// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, the counter-based random number generator of Salmon, Moraes, Dror and Shaw,
// "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once

#include <cstdint>

#include "common/deterministic_math.h"

namespace unison {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxKeyStep1 = 0xBB67AE85u;

struct PhiloxWords {
  uint32_t word[4];
};

UNISON_INLINE uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

UNISON_INLINE PhiloxWords philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                                 uint32_t k1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t high0 = multiply_high(kPhiloxMultiplier0, c0);
    const uint32_t low0 = kPhiloxMultiplier0 * c0;
    const uint32_t high1 = multiply_high(kPhiloxMultiplier1, c2);
    const uint32_t low1 = kPhiloxMultiplier1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
  return {{c0, c1, c2, c3}};
}

// What identifies one draw of one stream: every candidate has its own noise, which depends on
// nothing else.
struct NoiseKey {
  uint64_t seed;
  uint64_t position;
  uint32_t stream;

  // Random words of candidates 4 * block .. 4 * block + 3.
  UNISON_INLINE PhiloxWords words(uint32_t block) const {
    return philox(static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), stream,
                  block, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  }
};

}  // namespace unison
