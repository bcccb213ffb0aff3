// SPDX-License-Identifier: Apache-2.0
// The multi-stream sampler's arguments, checked and reduced to plain data for both devices.
// vllm/unison/ops/sample_reference.py defines what the sampler computes.
#pragma once

#include <cstdint>
#include <optional>

#include "common/forced.h"
#include "common/tensors.h"

namespace unison {

constexpr int64_t kMaxCandidates = int64_t{1} << 18;

// An item is one stream of one group. A group is sampled once per stream: from one row of the logits,
// with the settings of the group's first row in the batch, and all of its rows get the token.
struct SampleProblem {
  int64_t num_groups;
  int64_t num_rows;  // of the step's batch
  int64_t num_slots;
  int64_t num_streams;
  int64_t num_candidates;
  int64_t num_masks;
  int64_t num_logit_rows;
  int64_t rows_per_group;  // the most that get a group's tokens
  StridedView<const int64_t> logit_rows;  // [groups, streams]; data null: group g has row g
  StridedView<const int64_t> rows;        // [groups, rows per group]; data null: group g is row g
  StridedView<const int64_t> slots;       // [rows]; data null: row r has slot r
  const int32_t* candidate_ids;           // [streams, candidates]
  const uint8_t* masks;                   // [masks, streams, candidates]
  StridedView<const int32_t> mask_index;
  StridedView<const float> temperature;
  StridedView<const int32_t> top_k;
  StridedView<const float> top_p;
  StridedView<const int64_t> seed;
  StridedView<const int64_t> position;
  int64_t first_stream;
  StridedView<const int32_t> forced;
  StridedView<int32_t> tokens;

  UNISON_INLINE const int32_t* stream_candidate_ids(int64_t stream) const {
    return candidate_ids + stream * num_candidates;
  }

  UNISON_INLINE bool mask_exists(int32_t index) const { return index >= -1 && index < num_masks; }

  // Null where everything is allowed.
  UNISON_INLINE const uint8_t* stream_mask(int32_t index, int64_t stream) const {
    return index < 0 ? nullptr : masks + (index * num_streams + stream) * num_candidates;
  }

  // The row of the logits that an item is sampled from, -1 if there is none.
  UNISON_INLINE int64_t logit_row(int64_t group, int64_t stream) const {
    const int64_t row = logit_rows.data == nullptr ? group : logit_rows(group, stream);
    return row >= 0 && row < num_logit_rows ? row : -1;
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

  UNISON_INLINE void write(int64_t group, int64_t stream, int32_t token) const {
    for (int64_t place = 0; place < rows_per_group; ++place) {
      const int64_t own = row(group, place);
      if (own >= 0) {
        tokens(own, stream) = token;
      }
    }
  }
};

// The logits as they are stored.
template <typename storage_t>
struct LogitTensor {
  const storage_t* data;
  int64_t row_stride;
  int64_t stream_stride;  // candidates are contiguous

  UNISON_INLINE const storage_t* at(int64_t row, int64_t stream) const {
    return data + row * row_stride + stream * stream_stride;
  }
};

// The operator. launcher_t::sample(problem, logits, device), with logits a LogitTensor, computes a
// problem that has at least one item.
template <typename launcher_t>
void sample_streams(const at::Tensor& logits, const at::Tensor& candidate_ids,
                    const at::Tensor& masks, const at::Tensor& mask_index,
                    const at::Tensor& temperature, const at::Tensor& top_k, const at::Tensor& top_p,
                    const at::Tensor& seed, const at::Tensor& position, int64_t first_stream,
                    const at::Tensor& forced, const at::Tensor& tokens,
                    const std::optional<at::Tensor>& logit_rows,
                    const std::optional<at::Tensor>& rows,
                    const std::optional<at::Tensor>& slots) {
  TORCH_CHECK(logits.dim() == 3, "logits must have 3 dimensions [rows, streams, candidates], not ",
              logits.dim());
  const int64_t num_streams = logits.size(1);
  const int64_t num_candidates = logits.size(2);
  TORCH_CHECK(num_candidates >= 1 && num_candidates <= kMaxCandidates,
              "logits must have 1 to ", kMaxCandidates, " candidates, not ", num_candidates);
  check_floating(logits, "logits");
  TORCH_CHECK(num_candidates == 1 || logits.stride(2) == 1,
              "logits must be contiguous in its last dimension, not of stride ", logits.stride(2));
  TORCH_CHECK(masks.dim() == 3 && masks.size(1) == num_streams &&
                  masks.size(2) == num_candidates && masks.is_contiguous(),
              "masks must be contiguous of shape [any, ", num_streams, ", ", num_candidates,
              "], not ", masks.sizes());
  check_device(candidate_ids, "candidate_ids", logits);
  check_device(masks, "masks", logits);
  check_device(mask_index, "mask_index", logits);
  check_device(temperature, "temperature", logits);
  check_device(top_k, "top_k", logits);
  check_device(top_p, "top_p", logits);
  check_device(seed, "seed", logits);
  check_device(position, "position", logits);
  check_device(forced, "forced", logits);
  check_device(tokens, "tokens", logits);

  SampleProblem problem{};
  problem.num_streams = num_streams;
  problem.num_candidates = num_candidates;
  problem.num_masks = masks.size(0);
  problem.num_logit_rows = logits.size(0);
  problem.num_groups = logits.size(0);
  if (logit_rows.has_value()) {
    check_device(*logit_rows, "logit_rows", logits);
    TORCH_CHECK(logit_rows->dim() == 2, "logit_rows must have 2 dimensions, not ",
                logit_rows->dim());
    problem.num_groups = logit_rows->size(0);
    problem.logit_rows =
        matrix_view<const int64_t>(*logit_rows, "logit_rows", problem.num_groups, num_streams);
  }
  // Without rows every group is a row of its own.
  TORCH_CHECK(tokens.dim() == 2, "tokens must have 2 dimensions, not ", tokens.dim());
  problem.num_rows = problem.num_groups;
  problem.rows_per_group = 1;
  if (rows.has_value()) {
    check_device(*rows, "rows", logits);
    TORCH_CHECK(rows->dim() == 2 && rows->size(1) >= 1, "rows must have shape [",
                problem.num_groups, ", at least 1], not ", rows->sizes());
    problem.num_rows = tokens.size(0);
    problem.rows_per_group = rows->size(1);
    problem.rows =
        matrix_view<const int64_t>(*rows, "rows", problem.num_groups, problem.rows_per_group);
  }
  TORCH_CHECK(temperature.dim() == 2, "temperature must have 2 dimensions, not ",
              temperature.dim());
  problem.num_slots = problem.num_rows;
  if (slots.has_value()) {
    check_device(*slots, "slots", logits);
    problem.num_slots = temperature.size(0);
    problem.slots = vector_view<const int64_t>(*slots, "slots", problem.num_rows);
  }
  problem.candidate_ids =
      matrix_data<const int32_t>(candidate_ids, "candidate_ids", num_streams, num_candidates);
  problem.masks = reinterpret_cast<const uint8_t*>(masks.const_data_ptr<bool>());
  problem.mask_index = vector_view<const int32_t>(mask_index, "mask_index", problem.num_rows);
  problem.temperature =
      matrix_view<const float>(temperature, "temperature", problem.num_slots, num_streams);
  problem.top_k = matrix_view<const int32_t>(top_k, "top_k", problem.num_slots, num_streams);
  problem.top_p = matrix_view<const float>(top_p, "top_p", problem.num_slots, num_streams);
  problem.seed = vector_view<const int64_t>(seed, "seed", problem.num_slots);
  problem.position = vector_view<const int64_t>(position, "position", problem.num_rows);
  problem.first_stream = first_stream;
  problem.forced = matrix_view<const int32_t>(forced, "forced", problem.num_rows, num_streams);
  problem.tokens = matrix_view<int32_t>(tokens, "tokens", problem.num_rows, num_streams);
  if (problem.num_groups == 0 || num_streams == 0) {
    return;
  }
  with_storage(logits, [&](auto storage) {
    const LogitTensor<decltype(storage)> source{
        static_cast<const decltype(storage)*>(logits.const_data_ptr()), logits.stride(0),
        logits.stride(1)};
    launcher_t::sample(problem, source, logits.device());
  });
}

}  // namespace unison
