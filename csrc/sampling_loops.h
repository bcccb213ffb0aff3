// SPDX-License-Identifier: Apache-2.0
// The CPU sampler's loops over candidates, for one instruction set.
//
// multistream_sample.cpp includes this file once per instruction set, with UNISON_LOOPS_NAMESPACE
// and UNISON_LOOPS_TARGET set. All versions do the same IEEE operations on the same elements, so they
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

// Collects candidates with score >= threshold, in order. Stops when more than `limit` were found;
// at most limit + kCollectBlock are written. Returns the number found.
UNISON_LOOPS_TARGET inline int64_t collect_at_least(const float* scores, int64_t count,
                                                    float threshold, int64_t limit,
                                                    int32_t* __restrict indices) {
  int64_t found = 0;
  int64_t start = 0;
  for (; start + kCollectBlock <= count && found <= limit; start += kCollectBlock) {
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = 0; i < kCollectBlock; ++i) {
      any |= scores[start + i] >= threshold;
    }
    if (any != 0) {
      for (int64_t i = 0; i < kCollectBlock; ++i) {
        indices[found] = static_cast<int32_t>(start + i);
        found += scores[start + i] >= threshold;
      }
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

// First candidate with the largest score + noise among all with score >= threshold.
UNISON_LOOPS_TARGET inline int64_t argmax_with_noise(const float* scores, int64_t count,
                                                     float threshold, NoiseKey noise) {
  alignas(64) uint32_t words[kNoiseBlock];
  alignas(64) int32_t keys[kNoiseBlock];
  Best best{INT32_MIN, 0};
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
    int32_t largest = INT32_MIN;
#pragma omp simd reduction(max : largest)
    for (int32_t i = 0; i < size; ++i) {
      const float score = scores[start + i];
      const float kept = select(score >= threshold, score, negative_infinity());
      const int32_t key = order_key(add(kept, gumbel_noise(words[i])));
      keys[i] = key;
      largest = key > largest ? key : largest;
    }
    if (largest > best.key) {
      best = first_largest(keys, size, largest);
      best.index += start;
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
