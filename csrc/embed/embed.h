// SPDX-License-Identifier: Apache-2.0
// The input embedding of a multi-stream model: per position the sum of the embeddings of its streams,
// in float32, stream by stream, and rounded once. vllm/unison/ops/embed.py defines it.
#pragma once

#include <cstdint>
#include <optional>

#include "common/tensors.h"

namespace unison {

struct EmbedProblem {
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

// The operator. launcher_t::embed<storage_t>(problem, device) computes a problem that has something to
// write.
template <typename launcher_t>
void embed_streams(const at::Tensor& primary, const std::optional<at::Tensor>& primary_ids,
                   const std::optional<at::Tensor>& primary_skipped,
                   const at::Tensor& auxiliary_embedding, const at::Tensor& auxiliary_row,
                   const at::Tensor& auxiliary_ids, const at::Tensor& out) {
  check_floating(primary, "primary");
  check_contiguous_rows(primary, "primary");
  check_contiguous_rows(auxiliary_embedding, "auxiliary_embedding");
  check_contiguous_rows(auxiliary_ids, "auxiliary_ids");
  check_device(auxiliary_embedding, "auxiliary_embedding", primary);
  check_device(auxiliary_row, "auxiliary_row", primary);
  check_device(auxiliary_ids, "auxiliary_ids", primary);
  TORCH_CHECK(auxiliary_embedding.scalar_type() == primary.scalar_type() &&
                  auxiliary_embedding.size(1) == primary.size(1),
              "auxiliary_embedding must have the type and width of primary, ",
              primary.scalar_type(), " and ", primary.size(1), ", not ",
              auxiliary_embedding.scalar_type(), " and ", auxiliary_embedding.size(1));
  EmbedProblem problem{};
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
    if (primary_ids->scalar_type() == at::kInt) {
      problem.primary_ids32 = vector_data<const int32_t>(*primary_ids, "primary_ids", -1);
    } else {
      problem.primary_ids64 = vector_data<const int64_t>(*primary_ids, "primary_ids", -1);
    }
  }
  if (primary_skipped.has_value()) {
    check_device(*primary_skipped, "primary_skipped", primary);
    TORCH_CHECK(primary_ids.has_value(), "primary_skipped needs primary_ids");
    problem.primary_skipped = reinterpret_cast<const uint8_t*>(
        vector_data<const bool>(*primary_skipped, "primary_skipped", -1));
    problem.num_skippable = primary_skipped->size(0);
  }
  problem.auxiliary = auxiliary_embedding.const_data_ptr();
  problem.auxiliary_stride = auxiliary_embedding.stride(0);
  problem.auxiliary_row = vector_data<const int32_t>(auxiliary_row, "auxiliary_row", -1);
  problem.auxiliary_ids = auxiliary_ids.const_data_ptr<int32_t>();
  problem.auxiliary_ids_stride = auxiliary_ids.stride(0);
  check_device(out, "out", primary);
  TORCH_CHECK(out.dim() == 2 && out.size(0) == problem.num_tokens &&
                  out.size(1) == problem.width && out.scalar_type() == primary.scalar_type() &&
                  out.is_contiguous(),
              "out must be contiguous, [", problem.num_tokens, ", ", problem.width, "] and ",
              primary.scalar_type(), ", not ", out.sizes(), " and ", out.scalar_type());
  problem.out = out.mutable_data_ptr();
  if (problem.num_tokens != 0 && problem.width != 0) {
    with_storage(primary, [&](auto storage) {
      launcher_t::template embed<decltype(storage)>(problem, primary.device());
    });
  }
}

}  // namespace unison
