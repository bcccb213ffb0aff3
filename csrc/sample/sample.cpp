// SPDX-License-Identifier: Apache-2.0
// The multi-stream sampler for CPU. vllm/unison/ops/sample_reference.py defines what it computes.
#include "sample/sample.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/deterministic_math.h"
#include "common/instruction_set.h"
#include "common/philox.h"

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

// Reads logits as they are stored.
template <typename storage_t>
using LoadLogits = LoadedLogits (*)(const storage_t*, const int32_t*, const uint8_t*, int64_t,
                                    float*);

struct SampleLoops {
  LoadLogits<float> load_float32;
  LoadLogits<Bfloat16Bits> load_bfloat16;
  LoadLogits<Float16Bits> load_float16;
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
  LoadLogits<storage_t> load() const {
    if constexpr (std::is_same_v<storage_t, float>) {
      return load_float32;
    } else if constexpr (std::is_same_v<storage_t, Bfloat16Bits>) {
      return load_bfloat16;
    } else {
      return load_float16;
    }
  }
};

}  // namespace
}  // namespace unison

#define UNISON_LOOPS_NAMESPACE baseline_loops
#define UNISON_LOOPS_LEVEL 0
#define UNISON_LOOPS_TARGET
#include "sample/sample_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET
#undef UNISON_LOOPS_LEVEL

#ifdef UNISON_X86_LOOPS
#define UNISON_LOOPS_NAMESPACE avx2_loops
#define UNISON_LOOPS_LEVEL 1
#define UNISON_LOOPS_TARGET UNISON_AVX2_TARGET
#include "sample/sample_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET
#undef UNISON_LOOPS_LEVEL

#define UNISON_LOOPS_NAMESPACE avx512_loops
#define UNISON_LOOPS_LEVEL 2
#define UNISON_LOOPS_TARGET UNISON_AVX512_TARGET
#include "sample/sample_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET
#undef UNISON_LOOPS_LEVEL
#endif

namespace unison {
namespace {

const SampleLoops& selected_loops() {
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
  std::vector<float> scores;
  std::vector<int32_t> indices;
  std::vector<float> listed_scores;
  std::vector<int32_t> keys;
  std::vector<int32_t> weights;

  void reserve(int64_t num_candidates) {
    const size_t size = static_cast<size_t>(num_candidates + kSlack);
    if (scores.size() < size) {
      scores.resize(size);
      indices.resize(size);
      listed_scores.resize(size);
      keys.resize(size);
      weights.resize(size);
    }
  }
};

// The k-th largest of some scores, of which `largest` is the largest.
float kth_largest(const SampleLoops& loops, const float* scores, int64_t count, int64_t k,
                  float largest, Scratch& scratch) {
  int32_t* keys = scratch.keys.data();
  const int32_t low = loops.order_keys(scores, count, keys);
  return order_key_value(loops.lowest_kept_key(keys, nullptr, count, low, order_key(largest),
                                               static_cast<double>(k)));
}

// Whether few scores reach the bound below.
bool has_close_bound(int64_t count, int64_t k) { return std::max<int64_t>(128, 2 * k) <= count / 4; }

// At most the k-th largest score: the k-th largest of the maxima of 2 k disjoint groups or more.
float bound_of_kth_largest(const SampleLoops& loops, const float* scores, int64_t count,
                           int64_t k, float largest, Scratch& scratch) {
  float* maxima = scratch.listed_scores.data();
  const int64_t groups = std::max<int64_t>(128, (2 * k + 15) / 16 * 16);
  loops.group_maxima(scores, count, groups, maxima);
  return kth_largest(loops, maxima, groups, k, largest, scratch);
}

// The lowest score that top-p keeps among some, of which `largest` is the largest. Those that weigh
// nothing need not be among them.
float top_p_threshold(const SampleLoops& loops, const float* scores, int64_t count, float largest,
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

// What decides an item once its logits are known.
struct Settings {
  float temperature;
  int64_t top_k;  // number of candidates or more: off
  float top_p;    // 1 or more: off
  NoiseKey noise;
};

// The candidate among few listed ones: those that the filters keep, and some below them.
int64_t choose_listed(const SampleLoops& loops, const Settings& settings, int64_t listed,
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
int64_t choose(const SampleLoops& loops, const Settings& settings, int64_t count,
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

// The index of the chosen candidate, -1 if there is none.
template <typename storage_t>
int64_t sample_item(const SampleLoops& loops, const SampleProblem& problem,
                    const LogitTensor<storage_t>& logits, int64_t group, int64_t row,
                    int64_t stream, Scratch& scratch) {
  const int32_t mask_index = problem.mask_index(row);
  const int64_t slot = problem.slot(row);
  const int64_t logit_row = problem.logit_row(group, stream);
  if (slot < 0 || logit_row < 0 || !problem.mask_exists(mask_index)) {
    return -1;
  }
  const int64_t count = problem.num_candidates;
  const LoadedLogits loaded = loops.load<storage_t>()(
      logits.at(logit_row, stream), problem.stream_candidate_ids(stream),
      problem.stream_mask(mask_index, stream), count, scratch.scores.data());
  if (loaded.unusable || loaded.largest == negative_infinity()) {
    return -1;
  }
  const int64_t top_k = problem.top_k(slot, stream);
  const Settings settings{problem.temperature(slot, stream),
                          top_k > 0 ? top_k : count,
                          problem.top_p(slot, stream),
                          {static_cast<uint64_t>(problem.seed(slot)),
                           static_cast<uint64_t>(problem.position(row)),
                           static_cast<uint32_t>(problem.first_stream + stream)}};
  return choose(loops, settings, count, loaded.largest, scratch);
}

struct OnCpu {
  template <typename storage_t>
  static void sample(const SampleProblem& problem, const LogitTensor<storage_t>& logits,
                     at::Device) {
    const SampleLoops& loops = selected_loops();
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
        const int32_t forced = row < 0 ? kKeepOutput : problem.forced(row, stream);
        if (forced >= 0) {
          problem.write(group, stream, forced);
        } else if (forced == kSample) {
          const int64_t candidate = sample_item(loops, problem, logits, group, row, stream, scratch);
          problem.write(group, stream,
                        candidate < 0 ? -1 : problem.stream_candidate_ids(stream)[candidate]);
        }
      }
    });
  }
};

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CPU, m) {
  m.impl("sample_streams", unison::sample_streams<unison::OnCpu>);
}
