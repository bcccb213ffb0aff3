// SPDX-License-Identifier: Apache-2.0
// The inputs of a step in which every row computes one token, moved on from the step before. For the
// CPU, where a step's inputs live as long as the runner.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cstdint>

#include "stream_phases.h"

namespace unison {
namespace {

void move_inputs(const at::Tensor& tokens, const at::Tensor& block_table, int64_t block_size,
                 const at::Tensor& input_ids, const at::Tensor& positions,
                 const at::Tensor& seq_lens, const at::Tensor& sampled_position,
                 const at::Tensor& slots, const at::Tensor& auxiliary_ids) {
  TORCH_CHECK(tokens.dim() == 2 && tokens.size(1) >= 1,
              "tokens must have shape [rows, streams], not ", tokens.sizes());
  const int64_t num_rows = tokens.size(0);
  const int64_t num_streams = tokens.size(1);
  TORCH_CHECK(block_size >= 1, "block_size must be at least 1, not ", block_size);
  TORCH_CHECK(block_table.dim() == 2 && block_table.is_contiguous() &&
                  block_table.size(0) >= num_rows,
              "block_table must be contiguous of shape [at least ", num_rows, ", blocks], not ",
              block_table.sizes());
  TORCH_CHECK(auxiliary_ids.dim() == 2 && auxiliary_ids.is_contiguous() &&
                  auxiliary_ids.size(0) >= num_rows && auxiliary_ids.size(1) == num_streams - 1,
              "auxiliary_ids must be contiguous of shape [at least ", num_rows, ", ",
              num_streams - 1, "], not ", auxiliary_ids.sizes());
  const int32_t* from = matrix_data<const int32_t>(tokens, "tokens", num_rows, num_streams);
  const int32_t* blocks = block_table.const_data_ptr<int32_t>();
  const int64_t most_blocks = block_table.size(1);
  int32_t* ids = vector_data<int32_t>(input_ids, "input_ids", num_rows);
  int64_t* position = vector_data<int64_t>(positions, "positions", num_rows);
  int32_t* length = vector_data<int32_t>(seq_lens, "seq_lens", num_rows);
  int64_t* sampled = vector_data<int64_t>(sampled_position, "sampled_position", num_rows);
  int64_t* slot = vector_data<int64_t>(slots, "slots", num_rows);
  int32_t* auxiliary = auxiliary_ids.mutable_data_ptr<int32_t>();
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t here = position[row] + 1;
    TORCH_CHECK(here >= 0 && here / block_size < most_blocks, "positions[", row, "] must be below ",
                most_blocks * block_size - 1, ", not ", here - 1);
    position[row] = here;
    length[row] += 1;
    sampled[row] += 1;
    slot[row] = int64_t{blocks[row * most_blocks + here / block_size]} * block_size +
                here % block_size;
    ids[row] = *from++;
    for (int64_t stream = 1; stream < num_streams; ++stream) {
      *auxiliary++ = *from++;
    }
  }
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CPU, m) { m.impl("move_inputs", unison::move_inputs); }
