// SPDX-License-Identifier: Apache-2.0
// The arguments of the multi-stream sampler, checked and reduced to plain data for both devices.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "deterministic_math.h"

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

struct SamplingProblem {
  int64_t num_rows;
  int64_t num_streams;
  int64_t num_candidates;
  int64_t num_masks;
  const int32_t* candidate_ids;  // [streams, candidates]
  const uint8_t* masks;          // [masks, streams, candidates]
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
};

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

// Checks shapes, types and devices; reads no element, so that it never waits for a device.
inline SamplingProblem sampling_problem(
    const at::Tensor& logits, const at::Tensor& candidate_ids, const at::Tensor& masks,
    const at::Tensor& mask_index, const at::Tensor& temperature, const at::Tensor& top_k,
    const at::Tensor& top_p, const at::Tensor& seed, const at::Tensor& position,
    int64_t first_stream, const at::Tensor& forced, const at::Tensor& tokens) {
  TORCH_CHECK(logits.dim() == 3, "logits must have 3 dimensions [rows, streams, candidates], not ",
              logits.dim());
  const int64_t num_rows = logits.size(0);
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
  // data_ptr checks the element types.
  return {
      num_rows,
      num_streams,
      num_candidates,
      masks.size(0),
      candidate_ids.const_data_ptr<int32_t>(),
      reinterpret_cast<const uint8_t*>(masks.const_data_ptr<bool>()),
      per_row_view<int32_t>(mask_index, "mask_index", num_rows),
      per_item_view<const float>(temperature, "temperature", num_rows, num_streams),
      per_item_view<const int32_t>(top_k, "top_k", num_rows, num_streams),
      per_item_view<const float>(top_p, "top_p", num_rows, num_streams),
      per_row_view<int64_t>(seed, "seed", num_rows),
      per_row_view<int64_t>(position, "position", num_rows),
      first_stream,
      per_item_view<const int32_t>(forced, "forced", num_rows, num_streams),
      per_item_view<int32_t>(tokens, "tokens", num_rows, num_streams),
  };
}

}  // namespace unison
