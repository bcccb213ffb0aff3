// SPDX-License-Identifier: Apache-2.0
// Guided multi-stream sampler for CPU. vllm/multistream/sampling/oracle.py defines what it computes.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "deterministic_math.h"
#include "instruction_set.h"
#include "logits.h"
#include "multistream_sample.h"
#include "philox.h"

#ifdef UNISON_X86_LOOPS
#include <immintrin.h>
#endif

namespace unison {
namespace {

constexpr int64_t kCollectBlock = 32;
constexpr int64_t kNoiseBlock = 1024;
constexpr int32_t kNoiseStretch = 64;
// 256 buckets of score cover a distance of 21.3 from the largest, where weights have become 0.
constexpr float kBucketsPerUnit = 12.0f;
constexpr int64_t kNumBuckets = 256;

struct LoadedLogits {
  bool unusable;
  float largest;
};

struct Best {
  int32_t key;
  int64_t index;
};

// The loops that read logits as they are stored.
template <typename storage_t>
struct ReadingLoops {
  LoadedLogits (*load)(const storage_t*, const int32_t*, const uint8_t*, int64_t, float*);
  void (*merge_lane)(const storage_t*, float, bool, int64_t, float*);
};

struct SamplingLoops {
  ReadingLoops<float> float32;
  ReadingLoops<Bfloat16Bits> bfloat16;
  ReadingLoops<Float16Bits> float16;
  void (*divide_scores)(float*, int64_t, float);
  void (*group_maxima)(const float*, int64_t, int64_t, float*);
  int64_t (*collect_at_least)(const float*, int64_t, float, int64_t, int32_t*);
  void (*gather)(const float*, const int32_t*, int64_t, float*);
  int64_t (*weigh)(const float*, int64_t, float, float, int32_t*, uint8_t*);
  int64_t (*argmax_with_noise)(const float*, int64_t, float, NoiseKey);
  int64_t (*argmax_with_noise_listed)(const float*, const int32_t*, int64_t, NoiseKey, int32_t*);

  template <typename storage_t>
  const ReadingLoops<storage_t>& reading() const {
    if constexpr (std::is_same_v<storage_t, float>) {
      return float32;
    } else if constexpr (std::is_same_v<storage_t, Bfloat16Bits>) {
      return bfloat16;
    } else {
      return float16;
    }
  }
};

}  // namespace
}  // namespace unison

#define UNISON_LOOPS_NAMESPACE baseline_loops
#define UNISON_LOOPS_LEVEL 0
#define UNISON_LOOPS_TARGET
#include "sampling_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET
#undef UNISON_LOOPS_LEVEL

#ifdef UNISON_X86_LOOPS
#define UNISON_LOOPS_NAMESPACE avx2_loops
#define UNISON_LOOPS_LEVEL 1
#define UNISON_LOOPS_TARGET UNISON_AVX2_TARGET
#include "sampling_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET
#undef UNISON_LOOPS_LEVEL

#define UNISON_LOOPS_NAMESPACE avx512_loops
#define UNISON_LOOPS_LEVEL 2
#define UNISON_LOOPS_TARGET UNISON_AVX512_TARGET
#include "sampling_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET
#undef UNISON_LOOPS_LEVEL
#endif

namespace unison {
namespace {

const SamplingLoops& selected_loops() {
  switch (selected_instruction_set()) {
#ifdef UNISON_X86_LOOPS
    case InstructionSet::avx2:
      return avx2_loops::kLoops;
    case InstructionSet::avx512:
      return avx512_loops::kLoops;
#endif
    default:
      return baseline_loops::kLoops;
  }
}

// Buffers of one thread, kept between calls.
struct Scratch {
  std::vector<float> merged;
  std::vector<float> scores;
  std::vector<int32_t> indices;
  std::vector<float> listed_scores;
  std::vector<int32_t> integers;
  std::vector<uint8_t> buckets;
  std::vector<float> selection;
  std::vector<std::pair<float, int32_t>> score_weights;

  void reserve(int64_t num_candidates) {
    const size_t size = static_cast<size_t>(num_candidates + kCollectBlock);
    if (scores.size() < size) {
      merged.resize(size);
      scores.resize(size);
      indices.resize(size);
      listed_scores.resize(size);
      integers.resize(size);
      buckets.resize(size);
      selection.resize(size);
    }
  }
};

float kth_largest(float* values, int64_t count, int64_t k) {
  std::nth_element(values, values + (k - 1), values + count, std::greater<float>());
  return values[k - 1];
}

// The k-th largest score. The maxima of at least k disjoint groups bound it from below; few scores
// reach the bound where k is small against the number of groups, and only those are selected among.
float top_k_threshold(const SamplingLoops& loops, const float* scores, int64_t count, int64_t k,
                      Scratch& scratch) {
  float* selection = scratch.selection.data();
  const int64_t groups = std::max<int64_t>(128, (2 * k + 15) / 16 * 16);
  if (groups > count / 4) {
    std::copy(scores, scores + count, selection);
    return kth_largest(selection, count, k);
  }
  loops.group_maxima(scores, count, groups, selection);
  const float bound = kth_largest(selection, groups, k);
  const int64_t reaching =
      loops.collect_at_least(scores, count, bound, count, scratch.indices.data());
  loops.gather(scores, scratch.indices.data(), reaching, selection);
  return kth_largest(selection, reaching, k);
}

// The lowest score that top-p keeps among those >= threshold.
float top_p_threshold(const SamplingLoops& loops, const float* scores, int64_t count, float largest,
                      float threshold, float top_p, Scratch& scratch) {
  int32_t* weights = scratch.integers.data();
  uint8_t* buckets = scratch.buckets.data();
  const int64_t total = loops.weigh(scores, count, largest, threshold, weights, buckets);
  const double limit = static_cast<double>(top_p) * static_cast<double>(total);

  // Buckets follow the order of the scores, so only one of them needs sorting: the lowest that is
  // occupied and has less than the limit above it.
  std::array<int64_t, kNumBuckets> bucket_weights{};
  std::array<int32_t, kNumBuckets> bucket_sizes{};
  for (int64_t i = 0; i < count; ++i) {
    bucket_weights[buckets[i]] += weights[i];
    ++bucket_sizes[buckets[i]];
  }
  int64_t above = 0;
  int64_t boundary = 0;  // the bucket of the largest score is always occupied
  int64_t above_boundary = 0;
  for (int64_t bucket = 0; bucket < kNumBuckets; ++bucket) {
    if (above != 0 && !(static_cast<double>(above) < limit)) {
      break;
    }
    if (bucket_sizes[bucket] != 0) {
      boundary = bucket;
      above_boundary = above;
    }
    above += bucket_weights[bucket];
  }

  auto& members = scratch.score_weights;
  members.clear();
  for (int64_t i = 0; i < count; ++i) {
    if (buckets[i] == boundary && scores[i] >= threshold) {
      members.emplace_back(scores[i], weights[i]);
    }
  }
  if (members.empty()) {
    return threshold;
  }
  std::sort(members.begin(), members.end(), std::greater<>());
  float lowest_kept = members.front().first;
  above = above_boundary;
  for (size_t i = 0; i < members.size();) {
    if (above != 0 && !(static_cast<double>(above) < limit)) {
      break;
    }
    lowest_kept = members[i].first;
    for (const float score = lowest_kept; i < members.size() && members[i].first == score; ++i) {
      above += members[i].second;
    }
  }
  return lowest_kept;
}

// scores[i] = the merged logit of an allowed candidate, -infinity for the others. An item without a
// lane is unusable.
template <typename storage_t>
LoadedLogits load_merged(const SamplingLoops& loops, const SamplingProblem& problem,
                         const LogitTensor<storage_t>& logits, const ItemSources& sources,
                         int64_t stream, int32_t mask_index, Scratch& scratch) {
  const ReadingLoops<storage_t>& reading = loops.reading<storage_t>();
  const int64_t count = problem.num_candidates;
  const int32_t* ids = problem.stream_candidate_ids(stream);
  const uint8_t* mask = problem.stream_mask(mask_index, stream);
  float* scores = scratch.scores.data();
  if (sources.rows == nullptr) {
    return reading.load(logits.at(sources.single, stream), ids, mask, count, scores);
  }
  int64_t num_lanes = 0;
  int64_t first = 0;
  for (int64_t lane = sources.count - 1; lane >= 0; --lane) {
    if (sources.exists(lane)) {
      ++num_lanes;
      first = lane;
    }
  }
  if (num_lanes == 0) {
    return {true, 0.0f};
  }
  if (num_lanes == 1 && sources.weight(first) == 1.0f) {
    return reading.load(logits.at(sources.row(first), stream), ids, mask, count, scores);
  }
  float* merged = scratch.merged.data();
  for (int64_t lane = first; lane < sources.count; ++lane) {
    if (sources.exists(lane)) {
      reading.merge_lane(logits.at(sources.row(lane), stream), sources.weight(lane), lane == first,
                         count, merged);
    }
  }
  return loops.float32.load(merged, ids, mask, count, scores);
}

struct Choice {
  int64_t candidate;  // -1 if there is none
  float log_probability;
};

// The candidate, given the scores of the allowed ones.
int64_t choose(const SamplingLoops& loops, const SamplingProblem& problem, int64_t row,
               int64_t slot, int64_t stream, float largest_logit, Scratch& scratch) {
  const int64_t count = problem.num_candidates;
  float* scores = scratch.scores.data();
  int32_t* indices = scratch.indices.data();
  const float temperature = problem.temperature(slot, stream);
  const float largest = temperature > 0.0f ? divide(largest_logit, temperature) : 0.0f;
  if (!(temperature > 0.0f) || !std::isfinite(largest)) {
    loops.collect_at_least(scores, count, largest_logit, 0, indices);
    return indices[0];
  }
  loops.divide_scores(scores, count, temperature);

  const NoiseKey noise{static_cast<uint64_t>(problem.seed(slot)),
                       static_cast<uint64_t>(problem.position(row)),
                       static_cast<uint32_t>(problem.first_stream + stream)};
  const int64_t top_k = problem.top_k(slot, stream);
  const float top_p = problem.top_p(slot, stream);
  const bool filter_k = top_k > 0 && top_k < count;
  const bool filter_p = top_p < 1.0f;
  if (!filter_k && !filter_p) {
    return loops.argmax_with_noise(scores, count, negative_infinity(), noise);
  }

  // Few survivors are listed and then worked on alone; many are worked on in place.
  const int64_t list_limit = count / 4;
  float* listed_scores = scratch.listed_scores.data();
  float threshold = negative_infinity();
  if (filter_k) {
    threshold = top_k_threshold(loops, scores, count, top_k, scratch);
  }
  if (filter_p) {
    const int64_t listed =
        filter_k ? loops.collect_at_least(scores, count, threshold, list_limit, indices) : count;
    if (listed <= list_limit) {
      loops.gather(scores, indices, listed, listed_scores);
      threshold =
          top_p_threshold(loops, listed_scores, listed, largest, threshold, top_p, scratch);
    } else {
      threshold = top_p_threshold(loops, scores, count, largest, threshold, top_p, scratch);
    }
  }
  const int64_t listed = loops.collect_at_least(scores, count, threshold, list_limit, indices);
  if (listed > list_limit) {
    return loops.argmax_with_noise(scores, count, threshold, noise);
  }
  loops.gather(scores, indices, listed, listed_scores);
  return indices[loops.argmax_with_noise_listed(listed_scores, indices, listed, noise,
                                                scratch.integers.data())];
}

template <typename storage_t>
Choice sample_item(const SamplingLoops& loops, const SamplingProblem& problem,
                   const LogitTensor<storage_t>& logits, int64_t group, int64_t row,
                   int64_t stream, Scratch& scratch) {
  constexpr float kNoNumber = std::numeric_limits<float>::quiet_NaN();
  const int32_t mask_index = problem.mask_index(row);
  const int64_t slot = problem.slot(row);
  if (slot < 0 || !problem.mask_exists(mask_index)) {
    return {-1, kNoNumber};
  }
  const ItemSources sources = problem.item_sources(group, stream);
  const LoadedLogits loaded =
      load_merged(loops, problem, logits, sources, stream, mask_index, scratch);
  if (loaded.unusable || loaded.largest == negative_infinity()) {
    return {-1, kNoNumber};
  }
  if (problem.log_probability.data == nullptr) {
    return {choose(loops, problem, row, slot, stream, loaded.largest, scratch), kNoNumber};
  }
  // Choosing divides the scores in place; `merged` may be what they were read from, and is free.
  const int64_t count = problem.num_candidates;
  std::copy_n(scratch.scores.data(), count, scratch.merged.data());
  const int64_t total =
      loops.weigh(scratch.merged.data(), count, loaded.largest, negative_infinity(),
                  scratch.integers.data(), scratch.buckets.data());
  const int64_t candidate =
      choose(loops, problem, row, slot, stream, loaded.largest, scratch);
  return {candidate, log_probability_of(scratch.merged[static_cast<size_t>(candidate)],
                                        loaded.largest, total)};
}

template <typename storage_t>
void sample_items(const SamplingProblem& problem, const LogitTensor<storage_t>& logits) {
  const SamplingLoops& loops = selected_loops();
  const int64_t num_items = problem.num_groups * problem.num_streams;
  // A thread is worth waking for some 32768 candidates, about 0.1 ms of work.
  const int64_t grain = std::max<int64_t>(1, 32768 / problem.num_candidates);
  at::parallel_for(0, num_items, grain, [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    scratch.reserve(problem.num_candidates);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / problem.num_streams;
      const int64_t stream = item % problem.num_streams;
      const int64_t row = problem.row(group, 0);
      const int32_t forced = row < 0 ? kLeave : problem.forced(row, stream);
      if (forced >= 0) {
        problem.write(group, stream, forced, 0.0f);
      } else if (forced == kSample) {
        const Choice choice =
            sample_item(loops, problem, logits, group, row, stream, scratch);
        const int32_t token =
            choice.candidate < 0 ? -1 : problem.stream_candidate_ids(stream)[choice.candidate];
        problem.write(group, stream, token, choice.log_probability);
      }
    }
  });
}

void guided_multistream_sample(
    const at::Tensor& logits, const at::Tensor& candidate_ids, const at::Tensor& masks,
    const at::Tensor& mask_index, const at::Tensor& temperature, const at::Tensor& top_k,
    const at::Tensor& top_p, const at::Tensor& seed, const at::Tensor& position,
    int64_t first_stream, const at::Tensor& forced, const at::Tensor& tokens,
    const std::optional<at::Tensor>& sources, const std::optional<at::Tensor>& weights,
    const std::optional<at::Tensor>& rows, const std::optional<at::Tensor>& slots,
    const std::optional<at::Tensor>& log_probability) {
  const SamplingProblem problem = sampling_problem(
      logits, candidate_ids, masks, mask_index, temperature, top_k, top_p, seed, position,
      first_stream, forced, tokens, sources, weights, rows, slots, log_probability);
  const int64_t row_stride = logits.stride(0);
  const int64_t stream_stride = logits.stride(1);
  const void* data = logits.const_data_ptr();
  if (logits.scalar_type() == at::kFloat) {
    sample_items<float>(problem, {static_cast<const float*>(data), row_stride, stream_stride});
  } else if (logits.scalar_type() == at::kBFloat16) {
    sample_items<Bfloat16Bits>(
        problem, {static_cast<const Bfloat16Bits*>(data), row_stride, stream_stride});
  } else {
    sample_items<Float16Bits>(
        problem, {static_cast<const Float16Bits*>(data), row_stride, stream_stride});
  }
}

template <float (*function)(float)>
at::Tensor map_float32(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous(),
              "x must be float32 and contiguous");
  at::Tensor result = at::empty(x.sizes(), x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    to[i] = function(from[i]);
  }
  return result;
}

float log_scalar(float x) { return deterministic_log(x); }
float exp_scalar(float x) { return deterministic_exp(x); }

// Random words (int64 [num_candidates]) and noise (float32 [num_candidates]) of one item.
std::vector<at::Tensor> candidate_noise(int64_t seed, int64_t position, int64_t stream,
                                        int64_t num_candidates) {
  const NoiseKey key{static_cast<uint64_t>(seed), static_cast<uint64_t>(position),
                     static_cast<uint32_t>(stream)};
  at::Tensor words = at::empty({num_candidates}, at::kLong);
  at::Tensor noise = at::empty({num_candidates}, at::kFloat);
  for (int64_t i = 0; i < num_candidates; ++i) {
    const uint32_t word = key.words(static_cast<uint32_t>(i / 4)).word[i % 4];
    words.mutable_data_ptr<int64_t>()[i] = word;
    noise.mutable_data_ptr<float>()[i] = gumbel_noise(word);
  }
  return {words, noise};
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CPU, m) {
  m.impl("guided_multistream_sample", unison::guided_multistream_sample);
  m.impl("deterministic_log", unison::map_float32<unison::log_scalar>);
  m.impl("deterministic_exp", unison::map_float32<unison::exp_scalar>);
}

TORCH_LIBRARY_IMPL(unison, CompositeExplicitAutograd, m) {
  m.impl("candidate_noise", unison::candidate_noise);
}
