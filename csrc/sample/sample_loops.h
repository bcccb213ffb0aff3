// SPDX-License-Identifier: Apache-2.0
// The CPU sampler's loops over candidates, for one instruction set.
//
// sample.cpp includes this file once per instruction set, with UNISON_LOOPS_NAMESPACE,
// UNISON_LOOPS_TARGET and UNISON_LOOPS_LEVEL (2: AVX-512, 1: AVX2, 0: neither) set. All versions do the
// same IEEE operations on the same elements, so they differ in speed only. Reductions are over integers,
// which compilers may reorder. The functions use nothing from the standard library: a template
// instantiated here for one instruction set could be the one the linker keeps for all.
//
// No #pragma once: the file is meant to be included several times.

namespace unison {
namespace UNISON_LOOPS_NAMESPACE {

// Vectors of 32-bit numbers, for what the compiler does not find by itself: moving chosen elements
// together, and products of twice the width.
#if UNISON_LOOPS_LEVEL == 2
#define UNISON_LOOPS_VECTORS 1
using Integers = __m512i;
constexpr int64_t kVectorSize = 16;

UNISON_LOOPS_TARGET UNISON_INLINE Integers load_vector(const void* from) {
  return _mm512_loadu_si512(from);
}
UNISON_LOOPS_TARGET UNISON_INLINE void store_vector(void* to, Integers vector) {
  _mm512_storeu_si512(to, vector);
}
UNISON_LOOPS_TARGET UNISON_INLINE uint32_t at_least_bits(Integers scores, float threshold) {
  return _mm512_cmp_ps_mask(_mm512_castsi512_ps(scores), _mm512_set1_ps(threshold), _CMP_GE_OQ);
}
UNISON_LOOPS_TARGET UNISON_INLINE uint32_t above_bits(Integers keys, int32_t middle) {
  return _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(middle));
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers indices_from(int64_t first) {
  return _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                          _mm512_set1_epi32(static_cast<int32_t>(first)));
}
// The elements whose bits are set, moved to the front in order.
UNISON_LOOPS_TARGET UNISON_INLINE Integers compress(uint32_t bits, Integers vector) {
  return _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), vector);
}
// The other operations are on elements of 64 bits.
UNISON_LOOPS_TARGET UNISON_INLINE Integers broadcast(uint64_t value) {
  return _mm512_set1_epi64(static_cast<int64_t>(value));
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers multiply_low_halves(Integers a, Integers b) {
  return _mm512_mul_epu32(a, b);
}
// By a shuffle: shifts wait for the unit that multiplies.
UNISON_LOOPS_TARGET UNISON_INLINE Integers high_halves(Integers a) {
  return _mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(a)));
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers exclusive_or(Integers a, Integers b, Integers c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers join_low_halves(Integers low, Integers high) {
  return _mm512_mask_blend_epi32(0xaaaa, low, _mm512_slli_epi64(high, 32));
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers interleave_even(Integers a, Integers b) {
  return _mm512_unpacklo_epi64(a, b);
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers interleave_odd(Integers a, Integers b) {
  return _mm512_unpackhi_epi64(a, b);
}
// first, first + 1, ... in the even elements, and then in the odd ones.
UNISON_LOOPS_TARGET UNISON_INLINE Integers even_then_odd(uint64_t first) {
  return _mm512_add_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), broadcast(first));
}
#elif UNISON_LOOPS_LEVEL == 1
#define UNISON_LOOPS_VECTORS 1
using Integers = __m256i;
constexpr int64_t kVectorSize = 8;

UNISON_LOOPS_TARGET UNISON_INLINE Integers load_vector(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
UNISON_LOOPS_TARGET UNISON_INLINE void store_vector(void* to, Integers vector) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), vector);
}
UNISON_LOOPS_TARGET UNISON_INLINE uint32_t at_least_bits(Integers scores, float threshold) {
  const __m256 reaching =
      _mm256_cmp_ps(_mm256_castsi256_ps(scores), _mm256_set1_ps(threshold), _CMP_GE_OQ);
  return static_cast<uint32_t>(_mm256_movemask_ps(reaching));
}
UNISON_LOOPS_TARGET UNISON_INLINE uint32_t above_bits(Integers keys, int32_t middle) {
  const __m256i above = _mm256_cmpgt_epi32(keys, _mm256_set1_epi32(middle));
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(above)));
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers indices_from(int64_t first) {
  return _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                          _mm256_set1_epi32(static_cast<int32_t>(first)));
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers compress(uint32_t bits, Integers vector) {
  const __m128i order = _mm_loadl_epi64(
      reinterpret_cast<const __m128i*>(kSetBits.places[bits]));
  return _mm256_permutevar8x32_epi32(vector, _mm256_cvtepu8_epi32(order));
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers broadcast(uint64_t value) {
  return _mm256_set1_epi64x(static_cast<int64_t>(value));
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers multiply_low_halves(Integers a, Integers b) {
  return _mm256_mul_epu32(a, b);
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers high_halves(Integers a) {
  return _mm256_castps_si256(_mm256_movehdup_ps(_mm256_castsi256_ps(a)));
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers exclusive_or(Integers a, Integers b, Integers c) {
  return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers join_low_halves(Integers low, Integers high) {
  return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xaa);
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers interleave_even(Integers a, Integers b) {
  return _mm256_unpacklo_epi64(a, b);
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers interleave_odd(Integers a, Integers b) {
  return _mm256_unpackhi_epi64(a, b);
}
UNISON_LOOPS_TARGET UNISON_INLINE Integers even_then_odd(uint64_t first) {
  return _mm256_add_epi64(_mm256_setr_epi64x(0, 2, 1, 3), broadcast(first));
}
#endif

// scores[i] = the logit of an allowed candidate, -infinity for the others. Tells whether an allowed
// logit is NaN or +infinity, and the largest score.
template <typename storage_t>
UNISON_LOOPS_TARGET LoadedLogits load_logits(const storage_t* logits, const int32_t* candidate_ids,
                                             const uint8_t* mask, int64_t count,
                                             float* __restrict scores) {
  int32_t unusable = 0;
  float largest = negative_infinity();
  if (mask != nullptr) {
#pragma omp simd reduction(| : unusable) reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) {
      const float logit = to_float(logits[i]);
      const bool allowed = (candidate_ids[i] >= 0) & (mask[i] != 0);
      unusable |= allowed & !(logit < infinity());
      const float score = select(allowed, logit, negative_infinity());
      scores[i] = score;
      largest = score > largest ? score : largest;
    }
  } else {
#pragma omp simd reduction(| : unusable) reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) {
      const float logit = to_float(logits[i]);
      const bool allowed = candidate_ids[i] >= 0;
      unusable |= allowed & !(logit < infinity());
      const float score = select(allowed, logit, negative_infinity());
      scores[i] = score;
      largest = score > largest ? score : largest;
    }
  }
  return {unusable != 0, largest};
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

// Collects candidates with score >= threshold, in order: their indices and scores. Stops when more
// than `limit` were found; at most limit + kSlack are written. Returns the number found.
UNISON_LOOPS_TARGET inline int64_t collect_at_least(const float* scores, int64_t count,
                                                    float threshold, int64_t limit,
                                                    int32_t* __restrict indices,
                                                    float* __restrict found_scores) {
  int64_t found = 0;
  int64_t start = 0;
#ifdef UNISON_LOOPS_VECTORS
  for (; start + kVectorSize <= count && found <= limit; start += kVectorSize) {
    const Integers vector = load_vector(scores + start);
    const uint32_t bits = at_least_bits(vector, threshold);
    store_vector(indices + found, compress(bits, indices_from(start)));
    store_vector(found_scores + found, compress(bits, vector));
    found += __builtin_popcount(bits);
  }
#endif
  for (; start < count && found <= limit; ++start) {
    indices[found] = static_cast<int32_t>(start);
    found_scores[found] = scores[start];
    found += scores[start] >= threshold;
  }
  return found;
}

// Keeps, in place and in order, the listed candidates with score >= threshold. Returns their number.
UNISON_LOOPS_TARGET inline int64_t keep_at_least(float* scores, int32_t* indices, int64_t count,
                                                 float threshold) {
  int64_t kept = 0;
  int64_t start = 0;
#ifdef UNISON_LOOPS_VECTORS
  // What is written lies at or before what was read, here and below.
  for (; start + kVectorSize <= count; start += kVectorSize) {
    const Integers vector = load_vector(scores + start);
    const Integers places = load_vector(indices + start);
    const uint32_t bits = at_least_bits(vector, threshold);
    store_vector(scores + kept, compress(bits, vector));
    store_vector(indices + kept, compress(bits, places));
    kept += __builtin_popcount(bits);
  }
#endif
  for (; start < count; ++start) {
    const float score = scores[start];
    scores[kept] = score;
    indices[kept] = indices[start];
    kept += score >= threshold;
  }
  return kept;
}

// Returns the smallest key.
UNISON_LOOPS_TARGET inline int32_t order_keys(const float* scores, int64_t count,
                                              int32_t* __restrict keys) {
  int32_t smallest = INT32_MAX;
#pragma omp simd reduction(min : smallest)
  for (int64_t i = 0; i < count; ++i) {
    keys[i] = order_key(scores[i]);
    smallest = keys[i] < smallest ? keys[i] : smallest;
  }
  return smallest;
}

// Integer weights of scores. Returns their total.
UNISON_LOOPS_TARGET inline int64_t weigh(const float* scores, int64_t count, float largest,
                                         int32_t* __restrict weights) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = integer_weight(scores[i], largest);
  }
  // By itself: in one loop, the compiler would take its step from the sum's wide numbers.
  int64_t total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; ++i) {
    total += weights[i];
  }
  return total;
}

// The sum of the weights of keys above a middle; without weights, their number.
template <bool weighted>
UNISON_LOOPS_TARGET inline int64_t sum_above(const int32_t* keys, const int32_t* weights,
                                             int64_t count, int32_t middle) {
  int64_t sum = 0;
  if constexpr (weighted) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
      sum += weights[i] & -static_cast<int32_t>(keys[i] > middle);
    }
  } else {
    int32_t number = 0;
#pragma omp simd reduction(+ : number)
    for (int64_t i = 0; i < count; ++i) {
      number += keys[i] > middle;
    }
    sum = number;
  }
  return sum;
}

// Keeps, in place, the keys above a middle, or the others. Returns their number.
template <bool weighted>
UNISON_LOOPS_TARGET inline int64_t keep_side(int32_t* keys, int32_t* weights, int64_t count,
                                             int32_t middle, bool above) {
  int64_t kept = 0;
  int64_t start = 0;
#ifdef UNISON_LOOPS_VECTORS
  const uint32_t flip = above ? 0 : (uint32_t{1} << kVectorSize) - 1;
  for (; start + kVectorSize <= count; start += kVectorSize) {
    const Integers vector = load_vector(keys + start);
    const uint32_t bits = above_bits(vector, middle) ^ flip;
    store_vector(keys + kept, compress(bits, vector));
    if constexpr (weighted) {
      store_vector(weights + kept, compress(bits, load_vector(weights + start)));
    }
    kept += __builtin_popcount(bits);
  }
#endif
  for (; start < count; ++start) {
    const int32_t key = keys[start];
    keys[kept] = key;
    if constexpr (weighted) {
      weights[kept] = weights[start];
    }
    kept += (key > middle) == above;
  }
  return kept;
}

// The smallest key for which all larger keys together weigh less than `limit`, or nothing. Without
// weights every key weighs 1, and `limit` k gives the k-th largest.
//
// Halves the range of keys, goes on with those in the half that holds the answer, and compares the
// last few with each other. Changes `keys` and `weights`, which have kSlack of room. `low` and
// `high` are the smallest and the largest key.
template <bool weighted>
UNISON_LOOPS_TARGET inline int32_t lowest_kept_key(int32_t* keys, int32_t* weights, int64_t count,
                                                   int32_t low, int32_t high, double limit) {
  int64_t above_high = 0;
  while (low < high && count > kFewKeys) {
    // Keys of either sign: the sum of two may be too large for 32 bits.
    const int32_t middle = static_cast<int32_t>((static_cast<int64_t>(low) + high) >> 1);
    const int64_t above = above_high + sum_above<weighted>(keys, weights, count, middle);
    const bool kept = above == 0 || static_cast<double>(above) < limit;
    count = keep_side<weighted>(keys, weights, count, middle, !kept);
    if (kept) {
      above_high = above;
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  if (low == high) {
    return low;
  }
  alignas(64) int64_t above[kFewKeys];
  for (int64_t j = 0; j < kFewKeys; ++j) {
    above[j] = above_high;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int32_t key = keys[i];
    const int64_t weight = weighted ? weights[i] : 1;
#pragma omp simd
    for (int64_t j = 0; j < kFewKeys; ++j) {
      above[j] += weight & -static_cast<int64_t>(key > keys[j]);
    }
  }
  int32_t lowest = INT32_MAX;
#pragma omp simd reduction(min : lowest)
  for (int64_t j = 0; j < count; ++j) {
    const bool kept = above[j] == 0 || static_cast<double>(above[j]) < limit;
    const int32_t key = kept ? keys[j] : INT32_MAX;
    lowest = key < lowest ? key : lowest;
  }
  return lowest;
}

// The first index with the largest key.
UNISON_LOOPS_TARGET inline Best first_largest(const int32_t* keys, int64_t count, int32_t largest) {
  int64_t start = 0;
  for (; start + kSearchBlock <= count; start += kSearchBlock) {
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = 0; i < kSearchBlock; ++i) {
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

// words[4 * i + w] = word w of block first_block + i, for a stretch of candidates.
UNISON_LOOPS_TARGET inline void noise_words(NoiseKey noise, uint32_t first_block,
                                            uint32_t* __restrict words) {
#ifdef UNISON_LOOPS_VECTORS
  // Each word is the lower half of an element of 64 bits; what is in the upper half is never read.
  // In the first round nothing that is multiplied depends on the block.
  constexpr int32_t kBlocks = kVectorSize / 2;
  const uint64_t first0 = (noise.position & 0xffffffffu) * kPhiloxMultiplier0;
  const uint64_t first1 = uint64_t{noise.stream} * kPhiloxMultiplier1;
  const uint32_t key0 = static_cast<uint32_t>(noise.seed);
  const uint32_t key1 = static_cast<uint32_t>(noise.seed >> 32);
  for (int32_t block = 0; block < kNoiseStretch / 4; block += kBlocks) {
    Integers c0 = broadcast((first1 >> 32) ^ (noise.position >> 32) ^ key0);
    Integers c1 = broadcast(first1);
    // Interleaving neighbouring elements will bring the blocks in order.
    Integers c2 = exclusive_or(even_then_odd(first_block + static_cast<uint32_t>(block)),
                               broadcast(first0 >> 32), broadcast(key1));
    Integers c3 = broadcast(first0);
    uint32_t k0 = key0 + kPhiloxKeyStep0;
    uint32_t k1 = key1 + kPhiloxKeyStep1;
    for (int32_t round = 1; round < kPhiloxRounds; ++round) {
      const Integers product0 = multiply_low_halves(c0, broadcast(kPhiloxMultiplier0));
      const Integers product1 = multiply_low_halves(c2, broadcast(kPhiloxMultiplier1));
      c0 = exclusive_or(high_halves(product1), c1, broadcast(k0));
      c2 = exclusive_or(high_halves(product0), c3, broadcast(k1));
      c1 = product1;
      c3 = product0;
      k0 += kPhiloxKeyStep0;
      k1 += kPhiloxKeyStep1;
    }
    const Integers low = join_low_halves(c0, c1);
    const Integers high = join_low_halves(c2, c3);
    store_vector(words + 4 * block, interleave_even(low, high));
    store_vector(words + 4 * block + kVectorSize, interleave_odd(low, high));
  }
#else
#pragma omp simd
  for (int32_t block = 0; block < kNoiseStretch / 4; ++block) {
    const PhiloxWords four = noise.words(first_block + static_cast<uint32_t>(block));
    words[4 * block] = four.word[0];
    words[4 * block + 1] = four.word[1];
    words[4 * block + 2] = four.word[2];
    words[4 * block + 3] = four.word[3];
  }
#endif
}

// No score + noise of a stretch of candidates is above it. A score is logit / temperature, of which
// the product with the reciprocal is at most 2^-22 off.
UNISON_LOOPS_TARGET inline float bound_of_stretch(const float* logits, const uint32_t* words,
                                                  int32_t count, float reciprocal,
                                                  float threshold) {
  float bound = negative_infinity();
#pragma omp simd reduction(max : bound)
  for (int32_t i = 0; i < count; ++i) {
    const float score = multiply(logits[i], reciprocal);
    const float magnitude = bits_float(float_bits(score) & 0x7fffffff);
    const float not_below = add(score, multiply(magnitude, 0x1p-21f));
    const float own = select(logits[i] >= threshold, add(not_below, noise_bound(words[i])),
                             negative_infinity());
    bound = own > bound ? own : bound;
  }
  return bound;
}

// First candidate of a stretch with the largest logit / temperature + noise.
UNISON_LOOPS_TARGET inline Best best_of_stretch(const float* logits, const uint32_t* words,
                                                int32_t count, float temperature,
                                                float threshold) {
  alignas(64) int32_t keys[kNoiseStretch];
  int32_t largest = INT32_MIN;
#pragma omp simd reduction(max : largest)
  for (int32_t i = 0; i < count; ++i) {
    const float score = divide(logits[i], temperature);
    const float kept = select(logits[i] >= threshold, score, negative_infinity());
    const int32_t key = order_key(add(kept, gumbel_noise(words[i])));
    keys[i] = key;
    largest = key > largest ? key : largest;
  }
  return first_largest(keys, count, largest);
}

// First candidate with the largest logit / temperature + noise among all with logit >= threshold.
// The largest of them must be finite and, unless the temperature is 1, both far from the ends of
// float32.
//
// Noise costs two logarithms, so it is bounded for all candidates, and computed for a stretch of them
// with the largest bound and for those whose bounds still reach the best so far. What is left out
// could not have won: adding a larger number never gives a smaller sum.
UNISON_LOOPS_TARGET inline int64_t argmax_with_noise(const float* logits, int64_t count,
                                                     float temperature, float threshold,
                                                     NoiseKey noise) {
  alignas(64) uint32_t words[kNoiseStretch];
  float bounds[kStretches];
  const float reciprocal = divide(1.0f, temperature);
  Best best{INT32_MIN, 0};
  float best_value = negative_infinity();
  for (int64_t first = 0; first < count; first += kStretches * kNoiseStretch) {
    const int64_t left = (count - first + kNoiseStretch - 1) / kNoiseStretch;
    const int64_t stretches = left < kStretches ? left : kStretches;
    int64_t likeliest = 0;
    for (int64_t stretch = 0; stretch < stretches; ++stretch) {
      const int64_t start = first + stretch * kNoiseStretch;
      noise_words(noise, static_cast<uint32_t>(start / 4), words);
      // A number of candidates that the compiler knows makes this loop, the hottest, straight.
      bounds[stretch] =
          count - start >= kNoiseStretch
              ? bound_of_stretch(logits + start, words, kNoiseStretch, reciprocal, threshold)
              : bound_of_stretch(logits + start, words, static_cast<int32_t>(count - start),
                                 reciprocal, threshold);
      likeliest = bounds[stretch] > bounds[likeliest] ? stretch : likeliest;
    }
    for (int64_t turn = -1; turn < stretches; ++turn) {
      const int64_t stretch = turn < 0 ? likeliest : turn;
      if (!(bounds[stretch] >= best_value) || turn == likeliest) {
        continue;
      }
      const int64_t start = first + stretch * kNoiseStretch;
      const int32_t size =
          static_cast<int32_t>(count - start < kNoiseStretch ? count - start : kNoiseStretch);
      noise_words(noise, static_cast<uint32_t>(start / 4), words);
      Best own = best_of_stretch(logits + start, words, size, temperature, threshold);
      own.index += start;
      if (own.key > best.key || (own.key == best.key && own.index < best.index)) {
        best = own;
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

constexpr SampleLoops kLoops = {
    load_logits<float>,
    load_logits<Bfloat16Bits>,
    load_logits<Float16Bits>,
    divide_scores,
    group_maxima,
    collect_at_least,
    keep_at_least,
    order_keys,
    weigh,
    lowest_kept_key<false>,
    lowest_kept_key<true>,
    argmax_with_noise,
    argmax_with_noise_listed,
};

#undef UNISON_LOOPS_VECTORS

}  // namespace UNISON_LOOPS_NAMESPACE
}  // namespace unison
