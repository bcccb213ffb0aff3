// SPDX-License-Identifier: Apache-2.0
// The multi-stream sampler for CUDA: one block per item. vllm/unison/ops/sample_reference.py defines what
// it computes.
//
// Sums and maxima are taken over integers, so that the order in which threads arrive changes nothing.
// The kernel uses few device features and names them all here, so that the tests can run it on the
// host: __syncthreads, atomics on shared memory, and the warp reductions below.
#pragma once

#include <cstdint>

#include "common/deterministic_math.h"
#include "common/philox.h"
#include "sample/sample.h"

namespace unison {

constexpr int kNumBins = 256;  // one per value of an 8-bit digit
constexpr int kNoBin = kNumBins;
constexpr unsigned kFullWarp = 0xffffffffu;
// Scores of up to so many candidates are kept in shared memory (32 KiB); more are computed anew in
// every pass over them.
constexpr int64_t kMaxCachedCandidates = 8192;

struct SharedState {
  unsigned long long bins[kNumBins + 1];
  unsigned long long above;  // what lies above the digit found
  int digit;
  int unusable;
  int largest;  // order key
  int first;    // candidate
};

__device__ __forceinline__ bool is_warp_leader() { return threadIdx.x % warpSize == 0; }

__device__ __forceinline__ void block_max(int* shared, int value) {
  value = __reduce_max_sync(kFullWarp, value);
  if (is_warp_leader()) {
    atomicMax(shared, value);
  }
}

// bins[bin] += weight, weight <= 2^30, by all threads of a warp together; kNoBin adds nothing. Scores
// share their leading digits, so threads with the same bin are added up before memory is touched.
__device__ __forceinline__ void add_to_bin(unsigned long long* bins, int bin, uint32_t weight) {
  const unsigned peers = __match_any_sync(kFullWarp, bin);
  const unsigned low = __reduce_add_sync(peers, weight & 0xffffu);
  const unsigned high = __reduce_add_sync(peers, weight >> 16);
  if (bin != kNoBin && static_cast<int>(threadIdx.x % warpSize) == __ffs(peers) - 1) {
    atomicAdd(&bins[bin], (static_cast<unsigned long long>(high) << 16) + low);
  }
}

// bins[d] becomes the sum of bins[d] .. bins[255]; bins[256] is 0.
__device__ __forceinline__ void sum_from_above(unsigned long long* bins) {
  for (int offset = 1; offset < kNumBins; offset *= 2) {
    __syncthreads();
    unsigned long long value = 0;
    const int bin = static_cast<int>(threadIdx.x);
    if (bin < kNumBins) {
      value = bins[bin] + (bin + offset < kNumBins ? bins[bin + offset] : 0);
    }
    __syncthreads();
    if (bin < kNumBins) {
      bins[bin] = value;
    }
  }
  __syncthreads();
}

// Unsigned integers in the order of the scores.
__device__ __forceinline__ uint32_t radix_key(float score) {
  return static_cast<uint32_t>(order_key(score)) ^ 0x80000000u;
}

// An item's scores, from the cache or from the logits.
template <typename storage_t, bool cached>
struct ItemScores {
  const storage_t* logits;
  const int32_t* candidate_ids;
  const uint8_t* mask;
  float temperature;
  float* cache;

  __device__ __forceinline__ bool allowed(int64_t candidate) const {
    return candidate_ids[candidate] >= 0 && (mask == nullptr || mask[candidate] != 0);
  }

  __device__ __forceinline__ float masked_logit(int64_t candidate) const {
    return allowed(candidate) ? to_float(logits[candidate]) : negative_infinity();
  }

  __device__ __forceinline__ float operator()(int64_t candidate) const {
    if constexpr (cached) {
      return cache[candidate];
    } else {
      return divide(masked_logit(candidate), temperature);
    }
  }
};

// The key of the rank-th largest score: the largest T that at least `rank` keys reach, found digit by
// digit from the top.
template <typename scores_t>
__device__ uint32_t top_k_key(const scores_t& scores, int64_t count, unsigned long long rank,
                              SharedState& shared) {
  uint32_t prefix = 0;
  uint32_t known = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int bin = threadIdx.x; bin <= kNumBins; bin += blockDim.x) {
      shared.bins[bin] = 0;
    }
    __syncthreads();
    for (int64_t start = 0; start < count; start += blockDim.x) {
      const int64_t i = start + threadIdx.x;
      int bin = kNoBin;
      if (i < count) {
        const uint32_t key = radix_key(scores(i));
        bin = (key & known) == prefix ? static_cast<int>((key >> shift) & 0xffu) : kNoBin;
      }
      add_to_bin(shared.bins, bin, 1);
    }
    sum_from_above(shared.bins);
    const int bin = static_cast<int>(threadIdx.x);
    if (bin < kNumBins && shared.bins[bin] >= rank && shared.bins[bin + 1] < rank) {
      shared.digit = bin;
      shared.above = shared.bins[bin + 1];
    }
    __syncthreads();
    rank -= shared.above;
    prefix |= static_cast<uint32_t>(shared.digit) << shift;
    known |= 0xffu << shift;
  }
  return prefix;
}

__device__ __forceinline__ bool below_limit(unsigned long long above, double limit) {
  return above == 0 || static_cast<double>(above) < limit;
}

// The smallest key T for which the weights of keys above T sum to less than top_p of the total, over
// scores with keys >= `lowest`; not less than `lowest`.
template <typename scores_t>
__device__ uint32_t top_p_key(const scores_t& scores, int64_t count, uint32_t lowest, float largest,
                              float top_p, SharedState& shared) {
  uint32_t prefix = 0;
  uint32_t known = 0;
  unsigned long long above = 0;
  double limit = 0.0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int bin = threadIdx.x; bin <= kNumBins; bin += blockDim.x) {
      shared.bins[bin] = 0;
    }
    __syncthreads();
    for (int64_t start = 0; start < count; start += blockDim.x) {
      const int64_t i = start + threadIdx.x;
      int bin = kNoBin;
      uint32_t weight = 0;
      if (i < count) {
        const float score = scores(i);
        const uint32_t key = radix_key(score);
        if (key >= lowest && (key & known) == prefix) {
          weight = static_cast<uint32_t>(integer_weight(score, largest));
          bin = weight != 0 ? static_cast<int>((key >> shift) & 0xffu) : kNoBin;
        }
      }
      add_to_bin(shared.bins, bin, weight);
    }
    sum_from_above(shared.bins);
    if (shift == 24) {
      // An exact total and one IEEE product, as in the other implementations.
      limit = static_cast<double>(top_p) * static_cast<double>(shared.bins[0]);
    }
    const int bin = static_cast<int>(threadIdx.x);
    if (bin < kNumBins && below_limit(above + shared.bins[bin + 1], limit) &&
        (bin == 0 || !below_limit(above + shared.bins[bin], limit))) {
      shared.digit = bin;
      shared.above = above + shared.bins[bin + 1];
    }
    __syncthreads();
    above = shared.above;
    prefix |= static_cast<uint32_t>(shared.digit) << shift;
    known |= 0xffu << shift;
  }
  return prefix > lowest ? prefix : lowest;
}

// The first candidate with the largest key in the block, which is left in shared.largest. Every
// thread brings the first of the largest of its own.
__device__ __forceinline__ int block_first(int key, int candidate, SharedState& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.largest = INT32_MIN;
    shared.first = INT32_MAX;
  }
  __syncthreads();
  block_max(&shared.largest, key);
  __syncthreads();
  if (key == shared.largest) {
    atomicMin(&shared.first, candidate);
  }
  __syncthreads();
  return shared.first;
}

// Index of the chosen candidate, -1 if there is none; the same in every thread.
template <typename scores_t, bool cached>
__device__ int choose_candidate(const SampleProblem& problem, const scores_t& scores, int64_t row,
                                int64_t slot, int64_t stream, float* cache, SharedState& shared) {
  const int64_t count = problem.num_candidates;
  const float temperature = scores.temperature;
  if (threadIdx.x == 0) {
    shared.unusable = 0;
  }
  __syncthreads();
  int best_key = INT32_MIN;
  int best = INT32_MAX;
  bool unusable = false;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const float logit = scores.masked_logit(i);
    unusable |= !(logit < infinity());
    const int key = order_key(logit);
    if (key > best_key) {
      best_key = key;
      best = static_cast<int>(i);
    }
    if constexpr (cached) {
      cache[i] = temperature > 0.0f ? divide(logit, temperature) : logit;
    }
  }
  if (unusable) {
    atomicOr(&shared.unusable, 1);
  }
  const int greedy = block_first(best_key, best, shared);
  const float largest_logit = order_key_value(shared.largest);
  if (shared.unusable != 0 || largest_logit == negative_infinity()) {
    return -1;
  }
  const float largest = divide(largest_logit, temperature);
  if (!(temperature > 0.0f) || !(largest < infinity()) || !(largest > negative_infinity())) {
    return greedy;
  }

  const int64_t top_k = problem.top_k(slot, stream);
  const float top_p = problem.top_p(slot, stream);
  uint32_t lowest = 0;
  if (top_k > 0 && top_k < count) {
    lowest = top_k_key(scores, count, static_cast<unsigned long long>(top_k), shared);
  }
  if (top_p < 1.0f) {
    lowest = top_p_key(scores, count, lowest, largest, top_p, shared);
  }

  const NoiseKey noise{static_cast<uint64_t>(problem.seed(slot)),
                       static_cast<uint64_t>(problem.position(row)),
                       static_cast<uint32_t>(problem.first_stream + stream)};
  best_key = INT32_MIN;
  best = INT32_MAX;
  for (int64_t block = threadIdx.x; 4 * block < count; block += blockDim.x) {
    float four[4];
    bool any = false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t i = 4 * block + j;
      four[j] = i < count ? scores(i) : negative_infinity();
      if (radix_key(four[j]) < lowest) {
        four[j] = negative_infinity();
      }
      any |= four[j] > negative_infinity();
    }
    if (!any) {
      continue;
    }
    const PhiloxWords words = noise.words(static_cast<uint32_t>(block));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = order_key(add(four[j], gumbel_noise(words.word[j])));
      if (key > best_key) {
        best_key = key;
        best = static_cast<int>(4 * block + j);
      }
    }
  }
  return block_first(best_key, best, shared);
}

// Grid: one block per item, group by group; blockDim.x: a multiple of 32, at least kNumBins. Dynamic
// shared memory: C floats if cached.
template <typename storage_t, bool cached>
__global__ void __launch_bounds__(1024)
    sample_streams_kernel(SampleProblem problem, LogitTensor<storage_t> logits) {
  extern __shared__ float cache[];
  static __shared__ SharedState shared;
  const int64_t group = blockIdx.x / problem.num_streams;
  const int64_t stream = blockIdx.x % problem.num_streams;
  const int64_t row = problem.row(group, 0);
  const int32_t forced = row < 0 ? kKeepOutput : problem.forced(row, stream);
  if (forced < kSample) {
    return;
  }
  int32_t token = forced;
  if (forced == kSample) {
    const int32_t mask_index = problem.mask_index(row);
    const int64_t slot = problem.slot(row);
    const int64_t logit_row = problem.logit_row(group, stream);
    int chosen = -1;
    if (slot >= 0 && logit_row >= 0 && problem.mask_exists(mask_index)) {
      using scores_t = ItemScores<storage_t, cached>;
      const scores_t scores{logits.at(logit_row, stream), problem.stream_candidate_ids(stream),
                            problem.stream_mask(mask_index, stream),
                            problem.temperature(slot, stream), cache};
      chosen = choose_candidate<scores_t, cached>(problem, scores, row, slot, stream, cache, shared);
    }
    token = chosen < 0 ? -1 : problem.stream_candidate_ids(stream)[chosen];
  }
  if (threadIdx.x == 0) {
    problem.write(group, stream, token);
  }
}

}  // namespace unison
