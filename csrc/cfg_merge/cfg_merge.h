// SPDX-License-Identifier: Apache-2.0
// Arguments of the operators that sum rows of a tensor, checked and reduced to plain data for both
// devices: merge_lanes (weighted rows) and multistream_embed (embeddings of a position's streams).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>

#include "deterministic_math.h"
#include "storage.h"

namespace unison {

inline void check_floating(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16 ||
                  tensor.scalar_type() == at::kHalf,
              name, " must be float32, bfloat16 or float16, not ", tensor.scalar_type());
}

inline void check_rows(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.dim() == 2 && (tensor.size(1) <= 1 || tensor.stride(1) == 1), name,
              " must be a matrix with contiguous rows, not of shape ", tensor.sizes(),
              " and strides ", tensor.strides());
}

inline void check_device(const at::Tensor& tensor, const char* name, const at::Tensor& first) {
  TORCH_CHECK(tensor.device() == first.device(), name, " must be on ", first.device(), ", not ",
              tensor.device());
}

// calls function(storage_t{}) with the type that a tensor is stored in
template <typename function_t>
void with_storage(const at::Tensor& tensor, function_t function) {
  if (tensor.scalar_type() == at::kFloat) {
    function(float{});
  } else if (tensor.scalar_type() == at::kBFloat16) {
    function(Bfloat16Bits{});
  } else {
    function(Float16Bits{});
  }
}

struct MergeProblem {
  int64_t num_groups;
  int64_t num_lanes;  // most of a group
  int64_t num_rows;   // of the values
  int64_t width;
  const void* values;
  int64_t value_stride;
  const int64_t* sources;  // [groups, lanes]; an index that is no row of the values is no lane
  int64_t source_group_stride;
  int64_t source_lane_stride;
  const float* weights;
  int64_t weight_group_stride;
  int64_t weight_lane_stride;
  void* merged;
  int64_t merged_stride;

  // The row of a lane, -1 where there is none.
  UNISON_INLINE int64_t source(int64_t group, int64_t lane) const {
    const int64_t row = sources[group * source_group_stride + lane * source_lane_stride];
    return row >= 0 && row < num_rows ? row : -1;
  }
  UNISON_INLINE float weight(int64_t group, int64_t lane) const {
    return weights[group * weight_group_stride + lane * weight_lane_stride];
  }
};

inline MergeProblem merge_problem(const at::Tensor& values, const at::Tensor& sources,
                                  const at::Tensor& weights, const at::Tensor& merged) {
  check_floating(values, "values");
  check_floating(merged, "merged");
  check_rows(values, "values");
  check_rows(merged, "merged");
  check_device(sources, "sources", values);
  check_device(weights, "weights", values);
  check_device(merged, "merged", values);
  TORCH_CHECK(sources.dim() == 2, "sources must have 2 dimensions, not ", sources.dim());
  TORCH_CHECK(weights.sizes() == sources.sizes(), "weights must have the shape of sources, ",
              sources.sizes(), ", not ", weights.sizes());
  TORCH_CHECK(merged.size(0) == sources.size(0) && merged.size(1) == values.size(1),
              "merged must have shape [", sources.size(0), ", ", values.size(1), "], not ",
              merged.sizes());
  TORCH_CHECK(
      merged.scalar_type() == at::kFloat || merged.scalar_type() == values.scalar_type(),
      "merged must be float32 or of the type of values, ", values.scalar_type(), ", not ",
      merged.scalar_type());
  return {sources.size(0),
          sources.size(1),
          values.size(0),
          values.size(1),
          values.const_data_ptr(),
          values.stride(0),
          sources.const_data_ptr<int64_t>(),
          sources.stride(0),
          sources.stride(1),
          weights.const_data_ptr<float>(),
          weights.stride(0),
          weights.stride(1),
          merged.mutable_data_ptr(),
          merged.stride(0)};
}

struct EmbeddingProblem {
  int64_t num_tokens;
  int64_t num_auxiliary;  // streams
  int64_t width;
  int64_t primary_rows;
  int64_t auxiliary_rows;
  int64_t vocabulary;
  const void* primary;
  int64_t primary_stride;
  const int32_t* primary_ids32;  // both null: position t has row t
  const int64_t* primary_ids64;
  const uint8_t* primary_skipped;  // null: none is
  int64_t num_skippable;
  const void* auxiliary;
  int64_t auxiliary_stride;
  const int32_t* auxiliary_row;  // per id its row; 0 adds nothing
  const int32_t* auxiliary_ids;
  int64_t auxiliary_ids_stride;
  void* out;  // [tokens, width], contiguous

  // Row of stream 0's embedding, -1 if it adds nothing.
  UNISON_INLINE int64_t primary_row(int64_t token) const {
    if (primary_ids32 == nullptr && primary_ids64 == nullptr) {
      return token;
    }
    const int64_t id =
        primary_ids32 != nullptr ? static_cast<int64_t>(primary_ids32[token]) : primary_ids64[token];
    if (id < 0 || id >= primary_rows) {
      return -1;
    }
    const bool skipped =
        primary_skipped != nullptr && id < num_skippable && primary_skipped[id] != 0;
    return skipped ? -1 : id;
  }

  // Row of an auxiliary stream's embedding, -1 if it adds nothing.
  UNISON_INLINE int64_t auxiliary_row_of(int64_t token, int64_t stream) const {
    const int64_t id = auxiliary_ids[token * auxiliary_ids_stride + stream];
    if (id < 0 || id >= vocabulary) {
      return -1;
    }
    const int64_t row = auxiliary_row[id];
    return row > 0 && row < auxiliary_rows ? row : -1;
  }
};

inline EmbeddingProblem embedding_problem(
    const at::Tensor& primary, const std::optional<at::Tensor>& primary_ids,
    const std::optional<at::Tensor>& primary_skipped, const at::Tensor& auxiliary_embedding,
    const at::Tensor& auxiliary_row, const at::Tensor& auxiliary_ids, const at::Tensor& out) {
  check_floating(primary, "primary");
  check_rows(primary, "primary");
  check_rows(auxiliary_embedding, "auxiliary_embedding");
  check_rows(auxiliary_ids, "auxiliary_ids");
  check_device(auxiliary_embedding, "auxiliary_embedding", primary);
  check_device(auxiliary_row, "auxiliary_row", primary);
  check_device(auxiliary_ids, "auxiliary_ids", primary);
  TORCH_CHECK(auxiliary_embedding.scalar_type() == primary.scalar_type() &&
                  auxiliary_embedding.size(1) == primary.size(1),
              "auxiliary_embedding must have the type and width of primary, ",
              primary.scalar_type(), " and ", primary.size(1), ", not ",
              auxiliary_embedding.scalar_type(), " and ", auxiliary_embedding.size(1));
  TORCH_CHECK(auxiliary_row.dim() == 1 && auxiliary_row.is_contiguous(),
              "auxiliary_row must be a contiguous vector, not of shape ", auxiliary_row.sizes());
  EmbeddingProblem problem{};
  problem.num_tokens = primary_ids.has_value() ? primary_ids->size(0) : primary.size(0);
  TORCH_CHECK(auxiliary_ids.size(0) == problem.num_tokens, "auxiliary_ids must have ",
              problem.num_tokens, " rows, not ", auxiliary_ids.size(0));
  problem.num_auxiliary = auxiliary_ids.size(1);
  problem.width = primary.size(1);
  problem.primary_rows = primary.size(0);
  problem.auxiliary_rows = auxiliary_embedding.size(0);
  problem.vocabulary = auxiliary_row.size(0);
  problem.primary = primary.const_data_ptr();
  problem.primary_stride = primary.stride(0);
  if (primary_ids.has_value()) {
    check_device(*primary_ids, "primary_ids", primary);
    TORCH_CHECK(primary_ids->dim() == 1 && primary_ids->is_contiguous(),
                "primary_ids must be a contiguous vector, not of shape ", primary_ids->sizes());
    if (primary_ids->scalar_type() == at::kInt) {
      problem.primary_ids32 = primary_ids->const_data_ptr<int32_t>();
    } else {
      problem.primary_ids64 = primary_ids->const_data_ptr<int64_t>();
    }
  }
  if (primary_skipped.has_value()) {
    check_device(*primary_skipped, "primary_skipped", primary);
    TORCH_CHECK(primary_ids.has_value(), "primary_skipped needs primary_ids");
    TORCH_CHECK(primary_skipped->dim() == 1 && primary_skipped->is_contiguous(),
                "primary_skipped must be a contiguous vector, not of shape ",
                primary_skipped->sizes());
    problem.primary_skipped = reinterpret_cast<const uint8_t*>(primary_skipped->const_data_ptr<bool>());
    problem.num_skippable = primary_skipped->size(0);
  }
  problem.auxiliary = auxiliary_embedding.const_data_ptr();
  problem.auxiliary_stride = auxiliary_embedding.stride(0);
  problem.auxiliary_row = auxiliary_row.const_data_ptr<int32_t>();
  problem.auxiliary_ids = auxiliary_ids.const_data_ptr<int32_t>();
  problem.auxiliary_ids_stride = auxiliary_ids.stride(0);
  TORCH_CHECK(out.dim() == 2 && out.size(0) == problem.num_tokens &&
                  out.size(1) == problem.width && out.is_contiguous() &&
                  out.scalar_type() == primary.scalar_type(),
              "out has a wrong shape");
  problem.out = out.mutable_data_ptr();
  return problem;
}

}  // namespace unison
