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

// GCC's own intrinsics start from a vector that is not set, on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace unison {
namespace {

// Loops write whole vectors, past what they have found.
constexpr int64_t kSlack = 32;
constexpr int64_t kSearchBlock = 32;
// So few keys are compared each with each.
constexpr int64_t kFewKeys = 32;
constexpr int32_t kNoiseStretch = 64;
constexpr int64_t kStretches = 64;
// A score so far below the largest has the weight 0: exp(-22) * 2^30 < 1.
constexpr float kWeightless = 22.0f;

// For each 8 bits the places of those that are set, in order.
struct SetBits {
  uint8_t places[256][8]{};

  constexpr SetBits() {
    for (int bits = 0; bits < 256; ++bits) {
      int found = 0;
      for (int place = 0; place < 8; ++place) {
        if ((bits >> place) & 1) {
          places[bits][found++] = static_cast<uint8_t>(place);
        }
      }
    }
  }
};
constexpr SetBits kSetBits;

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
  int64_t (*collect_at_least)(const float*, int64_t, float, int64_t, int32_t*, float*);
  int64_t (*keep_at_least)(float*, int32_t*, int64_t, float);
  int32_t (*order_keys)(const float*, int64_t, int32_t*);
  int64_t (*weigh)(const float*, int64_t, float, int32_t*);
  int32_t (*lowest_kept_key)(int32_t*, int32_t*, int64_t, int32_t, int32_t, double);
  int32_t (*lowest_kept_weighted_key)(int32_t*, int32_t*, int64_t, int32_t, int32_t, double);
  int64_t (*argmax_with_noise)(const float*, int64_t, float, float, NoiseKey);
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
  std::vector<int32_t> keys;
  std::vector<int32_t> weights;

  void reserve(int64_t num_candidates) {
    const size_t size = static_cast<size_t>(num_candidates + kSlack);
    if (scores.size() < size) {
      merged.resize(size);
      scores.resize(size);
      indices.resize(size);
      listed_scores.resize(size);
      keys.resize(size);
      weights.resize(size);
    }
  }
};

// The k-th largest of some scores, of which `largest` is the largest.
float kth_largest(const SamplingLoops& loops, const float* scores, int64_t count, int64_t k,
                  float largest, Scratch& scratch) {
  int32_t* keys = scratch.keys.data();
  const int32_t low = loops.order_keys(scores, count, keys);
  return order_key_value(loops.lowest_kept_key(keys, nullptr, count, low, order_key(largest),
                                               static_cast<double>(k)));
}

// Whether few scores reach the bound below.
bool has_close_bound(int64_t count, int64_t k) { return std::max<int64_t>(128, 2 * k) <= count / 4; }

// At most the k-th largest score: the k-th largest of the maxima of 2 k disjoint groups or more.
float bound_of_kth_largest(const SamplingLoops& loops, const float* scores, int64_t count,
                           int64_t k, float largest, Scratch& scratch) {
  float* maxima = scratch.listed_scores.data();
  const int64_t groups = std::max<int64_t>(128, (2 * k + 15) / 16 * 16);
  loops.group_maxima(scores, count, groups, maxima);
  return kth_largest(loops, maxima, groups, k, largest, scratch);
}

// The lowest score that top-p keeps among some, of which `largest` is the largest. Those that weigh
// nothing need not be among them.
float top_p_threshold(const SamplingLoops& loops, const float* scores, int64_t count, float largest,
                      float top_p, Scratch& scratch) {
  int32_t* weights = scratch.weights.data();
  int32_t* keys = scratch.keys.data();
  const int64_t total = loops.weigh(scores, count, largest, weights);
  const double limit = static_cast<double>(top_p) * static_cast<double>(total);
  const int32_t low = loops.order_keys(scores, count, keys);
  return order_key_value(
      loops.lowest_kept_weighted_key(keys, weights, count, low, order_key(largest), limit));
}

// No logit below it has a quotient by the temperature as large as that of `logit`, rounding included.
float below_ties(float logit, float temperature) {
  const float slack = std::fabs(logit) * 0x1p-20f + temperature * 0x1p-120f;
  return std::max(logit - slack, std::numeric_limits<float>::lowest());
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

// What decides an item once its logits are known.
struct Settings {
  float temperature;
  int64_t top_k;  // number of candidates or more: off
  float top_p;    // 1 or more: off
  NoiseKey noise;
};

// The candidate among few listed ones: those that the filters keep, and some below them.
int64_t choose_listed(const SamplingLoops& loops, const Settings& settings, int64_t listed,
                      float largest, bool filter_k, Scratch& scratch) {
  float* scores = scratch.listed_scores.data();
  int32_t* indices = scratch.indices.data();
  loops.divide_scores(scores, listed, settings.temperature);
  if (filter_k && settings.top_k < listed) {
    const float threshold =
        kth_largest(loops, scores, listed, settings.top_k, largest, scratch);
    listed = loops.keep_at_least(scores, indices, listed, threshold);
  }
  if (settings.top_p < 1.0f) {
    const float threshold =
        top_p_threshold(loops, scores, listed, largest, settings.top_p, scratch);
    listed = loops.keep_at_least(scores, indices, listed, threshold);
  }
  return indices[loops.argmax_with_noise_listed(scores, indices, listed, settings.noise,
                                                scratch.keys.data())];
}

// The candidate, given the logits of the allowed ones.
int64_t choose(const SamplingLoops& loops, const Settings& settings, int64_t count,
               float largest_logit, Scratch& scratch) {
  float* scores = scratch.scores.data();
  int32_t* indices = scratch.indices.data();
  float* listed_scores = scratch.listed_scores.data();
  const float temperature = settings.temperature;
  const float largest = temperature > 0.0f ? divide(largest_logit, temperature) : 0.0f;
  if (!(temperature > 0.0f) || !std::isfinite(largest)) {
    loops.collect_at_least(scores, count, largest_logit, 0, indices, listed_scores);
    return indices[0];
  }
  const bool filter_k = settings.top_k < count;
  const bool filter_p = settings.top_p < 1.0f;
  // Bounds in units of logits, and reciprocals, need room for their rounding errors.
  const bool is_ordinary = temperature > 1e-30f && temperature < 1e30f &&
                           std::fabs(largest) < 1e30f && std::fabs(largest_logit) < 1e30f;
  if (!filter_k && !filter_p && is_ordinary) {
    return loops.argmax_with_noise(scores, count, temperature, negative_infinity(),
                                   settings.noise);
  }

  // Few survivors are listed and then worked on alone; many are worked on in place.
  const int64_t list_limit = count / 4;
  const bool close_bound = filter_k && has_close_bound(count, settings.top_k);
  if (is_ordinary && (close_bound || !filter_k)) {
    const float bound =
        close_bound ? bound_of_kth_largest(loops, scores, count, settings.top_k, largest_logit,
                                           scratch)
                    : largest_logit - kWeightless * temperature;
    const int64_t listed =
        loops.collect_at_least(scores, count, below_ties(bound, temperature), list_limit, indices,
                               listed_scores);
    if (listed <= list_limit) {
      return choose_listed(loops, settings, listed, largest, filter_k, scratch);
    }
  }

  loops.divide_scores(scores, count, temperature);
  float threshold = negative_infinity();
  if (filter_k) {
    threshold = kth_largest(loops, scores, count, settings.top_k, largest, scratch);
  }
  if (filter_p) {
    const float floor = std::max(threshold, largest - kWeightless);
    const int64_t listed =
        loops.collect_at_least(scores, count, floor, count, indices, listed_scores);
    threshold = top_p_threshold(loops, listed_scores, listed, largest, settings.top_p, scratch);
  }
  const int64_t listed =
      loops.collect_at_least(scores, count, threshold, list_limit, indices, listed_scores);
  if (listed > list_limit) {
    return loops.argmax_with_noise(scores, count, 1.0f, threshold, settings.noise);
  }
  return indices[loops.argmax_with_noise_listed(listed_scores, indices, listed, settings.noise,
                                                scratch.keys.data())];
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
  const int64_t count = problem.num_candidates;
  const int64_t top_k = problem.top_k(slot, stream);
  const Settings settings{problem.temperature(slot, stream),
                          top_k > 0 ? top_k : count,
                          problem.top_p(slot, stream),
                          {static_cast<uint64_t>(problem.seed(slot)),
                           static_cast<uint64_t>(problem.position(row)),
                           static_cast<uint32_t>(problem.first_stream + stream)}};
  if (problem.log_probability.data == nullptr) {
    return {choose(loops, settings, count, loaded.largest, scratch), kNoNumber};
  }
  // Choosing divides the scores in place; `merged` may be what they were read from, and is free.
  std::copy_n(scratch.scores.data(), count, scratch.merged.data());
  const int64_t total =
      loops.weigh(scratch.merged.data(), count, loaded.largest, scratch.weights.data());
  const int64_t candidate = choose(loops, settings, count, loaded.largest, scratch);
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
