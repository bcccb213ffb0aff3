// SPDX-License-Identifier: Apache-2.0
// The CPU sampler's loops over candidates, for one instruction set.
//
// multistream_sample.cpp includes this file once per instruction set, with UNISON_LOOPS_NAMESPACE,
// UNISON_LOOPS_TARGET and UNISON_LOOPS_LEVEL (2: AVX-512, 1: AVX2, 0: neither) set. All versions do the same IEEE operations on the same elements, so they
// differ in speed only. Reductions are over integers, which compilers may reorder. The functions use
// nothing from the standard library: a template instantiated here for one instruction set could be
// the one the linker keeps for all.
//
// No #pragma once: the file is meant to be included several times.

namespace unison {
namespace UNISON_LOOPS_NAMESPACE {

// merged[i] = weight * lane[i], added to what is there unless it is the first lane.
template <typename storage_t>
UNISON_LOOPS_TARGET void merge_lane(const storage_t* lane, float weight, bool is_first,
                                    int64_t count, float* __restrict merged) {
  if (is_first) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      merged[i] = multiply(weight, to_float(lane[i]));
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      merged[i] = add(merged[i], multiply(weight, to_float(lane[i])));
    }
  }
}

// scores[i] = the logit of an allowed candidate, -infinity for the others. Tells whether an allowed
// logit is NaN or +infinity, and the largest score.
template <typename storage_t>
UNISON_LOOPS_TARGET LoadedLogits load_logits(const storage_t* logits, const int32_t* candidate_ids,
                                             const uint8_t* mask, int64_t count,
                                             float* __restrict scores) {
  int32_t unusable = 0;
  int32_t largest = order_key(negative_infinity());
  if (mask != nullptr) {
#pragma omp simd reduction(| : unusable) reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) {
      const float logit = to_float(logits[i]);
      const bool allowed = (candidate_ids[i] >= 0) & (mask[i] != 0);
      unusable |= allowed & !(logit < infinity());
      scores[i] = select(allowed, logit, negative_infinity());
      const int32_t key = order_key(scores[i]);
      largest = key > largest ? key : largest;
    }
  } else {
#pragma omp simd reduction(| : unusable) reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) {
      const float logit = to_float(logits[i]);
      const bool allowed = candidate_ids[i] >= 0;
      unusable |= allowed & !(logit < infinity());
      scores[i] = select(allowed, logit, negative_infinity());
      const int32_t key = order_key(scores[i]);
      largest = key > largest ? key : largest;
    }
  }
  return {unusable != 0, order_key_value(largest)};
}

UNISON_LOOPS_TARGET inline void divide_scores(float* scores, int64_t count, float temperature) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = divide(scores[i], temperature);
  }
}

// maxima[g] = largest scores[i] with i % groups == g.
UNISON_LOOPS_TARGET inline void group_maxima(const float* scores, int64_t count, int64_t groups,
                                             float* __restrict maxima) {
  for (int64_t g = 0; g < groups; ++g) {
    maxima[g] = negative_infinity();
  }
  for (int64_t start = 0; start < count; start += groups) {
    const int64_t size = count - start < groups ? count - start : groups;
#pragma omp simd
    for (int64_t g = 0; g < size; ++g) {
      const float score = scores[start + g];
      maxima[g] = score > maxima[g] ? score : maxima[g];
    }
  }
}

// Bit i: whether scores[i] >= threshold, for kCollectBlock scores.
UNISON_LOOPS_TARGET inline uint32_t reaching_bits(const float* scores, float threshold) {
#if UNISON_LOOPS_LEVEL == 2
  const __m512 bound = _mm512_set1_ps(threshold);
  const uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores), bound, _CMP_GE_OQ);
  const uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + 16), bound, _CMP_GE_OQ);
  return low | (high << 16);
#elif UNISON_LOOPS_LEVEL == 1
  const __m256 bound = _mm256_set1_ps(threshold);
  uint32_t bits = 0;
  for (int part = 0; part < 4; ++part) {
    const __m256 reaching = _mm256_cmp_ps(_mm256_loadu_ps(scores + 8 * part), bound, _CMP_GE_OQ);
    bits |= static_cast<uint32_t>(_mm256_movemask_ps(reaching)) << (8 * part);
  }
  return bits;
#else
  uint32_t bits = 0;
  for (int64_t i = 0; i < kCollectBlock; ++i) {
    bits |= static_cast<uint32_t>(scores[i] >= threshold) << i;
  }
  return bits;
#endif
}

// Collects candidates with score >= threshold, in order. Stops when more than `limit` were found;
// at most limit + kCollectBlock are written. Returns the number found.
UNISON_LOOPS_TARGET inline int64_t collect_at_least(const float* scores, int64_t count,
                                                    float threshold, int64_t limit,
                                                    int32_t* __restrict indices) {
  int64_t found = 0;
  int64_t start = 0;
  for (; start + kCollectBlock <= count && found <= limit; start += kCollectBlock) {
    for (uint32_t bits = reaching_bits(scores + start, threshold); bits != 0; bits &= bits - 1) {
      indices[found++] = static_cast<int32_t>(start + __builtin_ctz(bits));
    }
  }
  for (; start < count && found <= limit; ++start) {
    indices[found] = static_cast<int32_t>(start);
    found += scores[start] >= threshold;
  }
  return found;
}

UNISON_LOOPS_TARGET inline void gather(const float* scores, const int32_t* indices, int64_t count,
                                       float* __restrict gathered) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    gathered[j] = scores[indices[j]];
  }
}

// Integer weights of scores >= threshold, 0 for the others, and the bucket of each score by its
// distance from the largest. Returns the total weight.
UNISON_LOOPS_TARGET inline int64_t weigh(const float* scores, int64_t count, float largest,
                                         float threshold, int32_t* __restrict weights,
                                         uint8_t* __restrict buckets) {
  int64_t total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; ++i) {
    const int32_t kept = -static_cast<int32_t>(scores[i] >= threshold);
    const int32_t weight = integer_weight(scores[i], largest) & kept;
    const float bucket = multiply(subtract(largest, scores[i]), kBucketsPerUnit);
    weights[i] = weight;
    buckets[i] = static_cast<uint8_t>(static_cast<int32_t>(bucket < 255.0f ? bucket : 255.0f));
    total += weight;
  }
  return total;
}

// The first index with the largest key.
UNISON_LOOPS_TARGET inline Best first_largest(const int32_t* keys, int64_t count, int32_t largest) {
  int64_t start = 0;
  for (; start + kCollectBlock <= count; start += kCollectBlock) {
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = 0; i < kCollectBlock; ++i) {
      any |= keys[start + i] == largest;
    }
    if (any != 0) {
      break;
    }
  }
  while (keys[start] != largest) {
    ++start;
  }
  return {largest, start};
}

// Not below the noise of a word, and at most 0.07 above it but near the other end, where it is small.
//
// With t = (word + 1/2) / 2^32 the noise is -log(-log(1 - t)) < -log(t). The bits of a float, read as
// an integer, are its logarithm to base 2 (times 2^23, plus 127 * 2^23) but for less than 0.09, and
// never too large. The last term is more than all rounding errors, of the noise too.
UNISON_INLINE float noise_bound(uint32_t word) {
  constexpr float kLogTwo = 0x1.62e43p-1f;
  const float half = int_to_float(static_cast<int32_t>(word >> 1));
  const float logarithm = multiply(int_to_float(float_bits(half)), kLogTwo * 0x1p-23f);
  return subtract(kLogTwo * 158.0f + 0.001f, logarithm);
}

// First candidate with the largest score + noise among all with score >= threshold.
//
// Noise costs two logarithms, so it is computed only for short stretches of candidates of which one
// could beat the best so far by the bound of its noise. What is left out could not have won: adding a
// larger number never gives a smaller sum.
UNISON_LOOPS_TARGET inline int64_t argmax_with_noise(const float* scores, int64_t count,
                                                     float threshold, NoiseKey noise) {
  alignas(64) uint32_t words[kNoiseBlock];
  alignas(64) int32_t keys[kNoiseStretch];
  Best best{INT32_MIN, 0};
  float best_value = negative_infinity();
  for (int64_t start = 0; start < count; start += kNoiseBlock) {
    const int32_t size =
        static_cast<int32_t>(count - start < kNoiseBlock ? count - start : kNoiseBlock);
    const uint32_t first_counter = static_cast<uint32_t>(start / 4);
#pragma omp simd
    for (int32_t counter = 0; counter < (size + 3) / 4; ++counter) {
      const PhiloxWords four = noise.words(first_counter + static_cast<uint32_t>(counter));
      words[4 * counter] = four.word[0];
      words[4 * counter + 1] = four.word[1];
      words[4 * counter + 2] = four.word[2];
      words[4 * counter + 3] = four.word[3];
    }
    for (int32_t first = 0; first < size; first += kNoiseStretch) {
      const int32_t stretch_size = size - first < kNoiseStretch ? size - first : kNoiseStretch;
      const float* stretch = scores + start + first;
      const uint32_t* stretch_words = words + first;
      int32_t may_win = 0;
#pragma omp simd reduction(| : may_win)
      for (int32_t i = 0; i < stretch_size; ++i) {
        const bool above = add(stretch[i], noise_bound(stretch_words[i])) > best_value;
        may_win |= above & (stretch[i] >= threshold);
      }
      if (may_win == 0) {
        continue;
      }
      int32_t largest = INT32_MIN;
#pragma omp simd reduction(max : largest)
      for (int32_t i = 0; i < stretch_size; ++i) {
        const float kept = select(stretch[i] >= threshold, stretch[i], negative_infinity());
        const int32_t key = order_key(add(kept, gumbel_noise(stretch_words[i])));
        keys[i] = key;
        largest = key > largest ? key : largest;
      }
      if (largest > best.key) {
        best = first_largest(keys, stretch_size, largest);
        best.index += start + first;
        best_value = order_key_value(best.key);
      }
    }
  }
  return best.index;
}

// The same over listed candidates only; returns a place in the list. `keys` is scratch.
UNISON_LOOPS_TARGET inline int64_t argmax_with_noise_listed(const float* scores,
                                                            const int32_t* indices, int64_t count,
                                                            NoiseKey noise,
                                                            int32_t* __restrict keys) {
  int32_t largest = INT32_MIN;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < count; ++j) {
    const uint32_t candidate = static_cast<uint32_t>(indices[j]);
    const PhiloxWords four = noise.words(candidate >> 2);
    const uint32_t low = (candidate & 1) != 0 ? four.word[1] : four.word[0];
    const uint32_t high = (candidate & 1) != 0 ? four.word[3] : four.word[2];
    const uint32_t word = (candidate & 2) != 0 ? high : low;
    const int32_t key = order_key(add(scores[j], gumbel_noise(word)));
    keys[j] = key;
    largest = key > largest ? key : largest;
  }
  return first_largest(keys, count, largest).index;
}

constexpr SamplingLoops kLoops = {
    {load_logits<float>, merge_lane<float>},
    {load_logits<Bfloat16Bits>, merge_lane<Bfloat16Bits>},
    {load_logits<Float16Bits>, merge_lane<Float16Bits>},
    divide_scores,
    group_maxima,
    collect_at_least,
    gather,
    weigh,
    argmax_with_noise,
    argmax_with_noise_listed,
};

}  // namespace UNISON_LOOPS_NAMESPACE
}  // namespace unison
