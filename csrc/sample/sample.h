// SPDX-License-Identifier: Apache-2.0
// The arguments of the guided multi-stream sampler, checked and reduced to plain data for both devices.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "deterministic_math.h"
#include "logits.h"

namespace unison {

constexpr int64_t kMaxCandidates = int64_t{1} << 18;

// A strided [rows, columns] or [rows] view; a broadcast dimension has stride 0.
template <typename value_t>
struct StridedView {
  value_t* data;
  int64_t row_stride;
  int64_t column_stride;

  UNISON_INLINE value_t& operator()(int64_t row, int64_t column = 0) const {
    return data[row * row_stride + column * column_stride];
  }
};

// An item is one stream of one group. A group is sampled once: from the weighted sum of its lanes'
// logits, with the settings of its first row, and all of its rows get the token.
struct SamplingProblem {
  int64_t num_groups;
  int64_t num_rows;  // of the step's batch
  int64_t num_slots;
  int64_t num_streams;
  int64_t num_candidates;
  int64_t num_masks;
  int64_t num_logit_rows;
  int64_t num_sources;                  // most lanes whose logits are merged
  int64_t rows_per_group;               // most rows that get a group's tokens
  StridedView<const int64_t> sources;   // [groups * streams, lanes]: see source_stride
  int64_t source_stream_stride;
  StridedView<const float> weights;
  int64_t weight_stream_stride;
  StridedView<const int64_t> rows;      // [groups, rows per group]; data null: group g is row g
  StridedView<const int64_t> slots;     // [rows]; data null: row r has slot r
  const int32_t* candidate_ids;         // [streams, candidates]
  const uint8_t* masks;                 // [masks, streams, candidates]
  StridedView<const int32_t> mask_index;
  StridedView<const float> temperature;
  StridedView<const int32_t> top_k;
  StridedView<const float> top_p;
  StridedView<const int64_t> seed;
  StridedView<const int64_t> position;
  int64_t first_stream;
  StridedView<const int32_t> forced;
  StridedView<int32_t> tokens;
  StridedView<float> log_probability;   // data null: not asked for

  UNISON_INLINE const int32_t* stream_candidate_ids(int64_t stream) const {
    return candidate_ids + stream * num_candidates;
  }

  UNISON_INLINE bool mask_exists(int32_t index) const { return index >= -1 && index < num_masks; }

  // Null where everything is allowed.
  UNISON_INLINE const uint8_t* stream_mask(int32_t index, int64_t stream) const {
    return index < 0 ? nullptr : masks + (index * num_streams + stream) * num_candidates;
  }

  // A row of a group, -1 where there is none.
  UNISON_INLINE int64_t row(int64_t group, int64_t place) const {
    const int64_t row = rows.data == nullptr ? group : rows(group, place);
    return row >= 0 && row < num_rows ? row : -1;
  }

  // Where a row's settings are, -1 if it has none.
  UNISON_INLINE int64_t slot(int64_t row) const {
    const int64_t slot = slots.data == nullptr ? row : slots(row);
    return slot >= 0 && slot < num_slots ? slot : -1;
  }

  UNISON_INLINE ItemSources item_sources(int64_t group, int64_t stream) const {
    if (sources.data == nullptr) {
      return {nullptr, 0, nullptr, 0, 1, group, num_logit_rows};
    }
    return {&sources(group) + stream * source_stream_stride,
            sources.column_stride,
            &weights(group) + stream * weight_stream_stride,
            weights.column_stride,
            num_sources,
            0,
            num_logit_rows};
  }

  UNISON_INLINE void write(int64_t group, int64_t stream, int32_t token,
                           float token_log_probability) const {
    for (int64_t place = 0; place < rows_per_group; ++place) {
      const int64_t own = row(group, place);
      if (own >= 0) {
        tokens(own, stream) = token;
        if (log_probability.data != nullptr) {
          log_probability(own, stream) = token_log_probability;
        }
      }
    }
  }
};

// Values of `forced` that are no tokens.
constexpr int32_t kSample = -1;
constexpr int32_t kLeave = -2;  // and everything below: the outputs stay as they are

template <typename value_t, typename tensor_t>
StridedView<value_t> per_item_view(const tensor_t& tensor, const char* name, int64_t num_rows,
                                   int64_t num_streams) {
  TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == num_rows && tensor.size(1) == num_streams,
              name, " must have shape [", num_rows, ", ", num_streams, "], not ", tensor.sizes());
  if constexpr (std::is_const_v<value_t>) {
    return {tensor.template const_data_ptr<std::remove_const_t<value_t>>(), tensor.stride(0),
            tensor.stride(1)};
  } else {
    return {tensor.template mutable_data_ptr<value_t>(), tensor.stride(0), tensor.stride(1)};
  }
}

template <typename value_t>
StridedView<const value_t> per_row_view(const at::Tensor& tensor, const char* name,
                                        int64_t num_rows) {
  TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == num_rows, name, " must have shape [", num_rows,
              "], not ", tensor.sizes());
  return {tensor.const_data_ptr<value_t>(), tensor.stride(0), 0};
}

template <typename value_t>
void check_optional(const std::optional<at::Tensor>& tensor, const char* name, int64_t dimensions,
                    const at::Tensor& logits) {
  if (tensor.has_value()) {
    TORCH_CHECK(tensor->dim() == dimensions, name, " must have ", dimensions, " dimensions, not ",
                tensor->sizes());
    TORCH_CHECK(tensor->device() == logits.device(), "all tensors must be on the device of logits, ",
                logits.device(), "; ", name, " is on ", tensor->device());
    (void)tensor->const_data_ptr<value_t>();  // checks the type
  }
}

// Checks shapes, types and devices; reads no element, so that it never waits for a device.
inline SamplingProblem sampling_problem(
    const at::Tensor& logits, const at::Tensor& candidate_ids, const at::Tensor& masks,
    const at::Tensor& mask_index, const at::Tensor& temperature, const at::Tensor& top_k,
    const at::Tensor& top_p, const at::Tensor& seed, const at::Tensor& position,
    int64_t first_stream, const at::Tensor& forced, const at::Tensor& tokens,
    const std::optional<at::Tensor>& sources, const std::optional<at::Tensor>& weights,
    const std::optional<at::Tensor>& rows, const std::optional<at::Tensor>& slots,
    const std::optional<at::Tensor>& log_probability) {
  TORCH_CHECK(logits.dim() == 3, "logits must have 3 dimensions [rows, streams, candidates], not ",
              logits.dim());
  const int64_t num_streams = logits.size(1);
  const int64_t num_candidates = logits.size(2);
  TORCH_CHECK(num_candidates >= 1 && num_candidates <= kMaxCandidates,
              "logits must have 1 to ", kMaxCandidates, " candidates, not ", num_candidates);
  TORCH_CHECK(logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kBFloat16 ||
                  logits.scalar_type() == at::kHalf,
              "logits must be float32, bfloat16 or float16, not ", logits.scalar_type());
  TORCH_CHECK(num_candidates == 1 || logits.stride(2) == 1,
              "logits must be contiguous in its last dimension, not of stride ", logits.stride(2));
  TORCH_CHECK(candidate_ids.dim() == 2 && candidate_ids.size(0) == num_streams &&
                  candidate_ids.size(1) == num_candidates && candidate_ids.is_contiguous(),
              "candidate_ids must be contiguous of shape [", num_streams, ", ", num_candidates,
              "], not ", candidate_ids.sizes());
  TORCH_CHECK(masks.dim() == 3 && masks.size(1) == num_streams &&
                  masks.size(2) == num_candidates && masks.is_contiguous(),
              "masks must be contiguous of shape [any, ", num_streams, ", ", num_candidates,
              "], not ", masks.sizes());
  for (const at::Tensor* tensor : {&candidate_ids, &masks, &mask_index, &temperature, &top_k,
                                   &top_p, &seed, &position, &forced, &tokens}) {
    TORCH_CHECK(tensor->device() == logits.device(), "all tensors must be on the device of logits, ",
                logits.device(), ", not ", tensor->device());
  }
  check_optional<int64_t>(sources, "sources", 3, logits);
  check_optional<float>(weights, "weights", 3, logits);
  check_optional<int64_t>(rows, "rows", 2, logits);
  check_optional<int64_t>(slots, "slots", 1, logits);
  check_optional<float>(log_probability, "log_probability", 2, logits);
  TORCH_CHECK(sources.has_value() == weights.has_value(),
              "sources and weights must be given together");
  const int64_t num_groups = sources.has_value() ? sources->size(0) : logits.size(0);
  if (sources.has_value()) {
    TORCH_CHECK(sources->size(1) == num_streams, "sources must have shape [any, ", num_streams,
                ", any], not ", sources->sizes());
    TORCH_CHECK(weights->sizes() == sources->sizes(), "weights must have the shape of sources, ",
                sources->sizes(), ", not ", weights->sizes());
  }
  TORCH_CHECK(!rows.has_value() || (rows->size(0) == num_groups && rows->size(1) >= 1),
              "rows must have shape [", num_groups, ", at least 1]");
  // Without rows every group is a row of its own.
  TORCH_CHECK(tokens.dim() == 2, "tokens must have 2 dimensions, not ", tokens.dim());
  const int64_t num_rows = rows.has_value() ? tokens.size(0) : num_groups;
  TORCH_CHECK(!slots.has_value() || slots->size(0) == num_rows, "slots must have shape [", num_rows,
              "]");
  TORCH_CHECK(temperature.dim() == 2, "temperature must have 2 dimensions, not ",
              temperature.dim());
  const int64_t num_slots = slots.has_value() ? temperature.size(0) : num_rows;
  // data_ptr checks the element types.
  SamplingProblem problem{};
  problem.num_groups = num_groups;
  problem.num_rows = num_rows;
  problem.num_slots = num_slots;
  problem.num_streams = num_streams;
  problem.num_candidates = num_candidates;
  problem.num_masks = masks.size(0);
  problem.num_logit_rows = logits.size(0);
  problem.num_sources = 1;
  problem.rows_per_group = 1;
  if (sources.has_value()) {
    problem.num_sources = sources->size(2);
    problem.sources = {sources->const_data_ptr<int64_t>(), sources->stride(0), sources->stride(2)};
    problem.source_stream_stride = sources->stride(1);
    problem.weights = {weights->const_data_ptr<float>(), weights->stride(0), weights->stride(2)};
    problem.weight_stream_stride = weights->stride(1);
  }
  if (rows.has_value()) {
    problem.rows_per_group = rows->size(1);
    problem.rows = {rows->const_data_ptr<int64_t>(), rows->stride(0), rows->stride(1)};
  }
  if (slots.has_value()) {
    problem.slots = {slots->const_data_ptr<int64_t>(), slots->stride(0), 0};
  }
  problem.candidate_ids = candidate_ids.const_data_ptr<int32_t>();
  problem.masks = reinterpret_cast<const uint8_t*>(masks.const_data_ptr<bool>());
  problem.mask_index = per_row_view<int32_t>(mask_index, "mask_index", num_rows);
  problem.temperature =
      per_item_view<const float>(temperature, "temperature", num_slots, num_streams);
  problem.top_k = per_item_view<const int32_t>(top_k, "top_k", num_slots, num_streams);
  problem.top_p = per_item_view<const float>(top_p, "top_p", num_slots, num_streams);
  problem.seed = per_row_view<int64_t>(seed, "seed", num_slots);
  problem.position = per_row_view<int64_t>(position, "position", num_rows);
  problem.first_stream = first_stream;
  problem.forced = per_item_view<const int32_t>(forced, "forced", num_rows, num_streams);
  problem.tokens = per_item_view<int32_t>(tokens, "tokens", num_rows, num_streams);
  if (log_probability.has_value()) {
    problem.log_probability =
        per_item_view<float>(*log_probability, "log_probability", num_rows, num_streams);
  }
  return problem;
}

// log(exp(logit - largest) / total) with total in units of 2^-30: the same bits everywhere.
UNISON_INLINE float log_probability_of(float logit, float largest, int64_t total) {
  const float sum = multiply(static_cast<float>(total), 0x1p-30f);
  return subtract(subtract(logit, largest), deterministic_log(sum));
}

}  // namespace unison
