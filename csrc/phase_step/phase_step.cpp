// SPDX-License-Identifier: Apache-2.0
// The phase rule's operators for CPU. A row is a few dozen integers, so threads do not pay.
#include "stream_phases.h"

#include <torch/library.h>

namespace unison {
namespace {

void gather_streams(const at::Tensor& history, const at::Tensor& slots, const at::Tensor& rows,
                    const at::Tensor& positions, const at::Tensor& ids) {
  const GatherProblem problem = gather_problem(history, slots, rows, positions, ids);
  for (int64_t token = 0; token < problem.num_tokens; ++token) {
    problem.run(token);
  }
}

void begin_streams(const at::Tensor& kind, const at::Tensor& forced_token, const at::Tensor& delays,
                   const at::Tensor& pads, int64_t max_delay, const at::Tensor& state,
                   const at::Tensor& segment_start, const at::Tensor& flush_end,
                   const at::Tensor& tail_end, const at::Tensor& earliest_end,
                   const at::Tensor& history, const at::Tensor& slots, const at::Tensor& position,
                   const at::Tensor& forced, const at::Tensor& mask_index,
                   const at::Tensor& tokens) {
  const BeginProblem problem = begin_problem(
      kind, forced_token, delays, pads, max_delay, state, segment_start, flush_end, tail_end,
      earliest_end, history, slots, position, forced, mask_index, tokens);
  for (int64_t row = 0; row < problem.num_rows; ++row) {
    problem.run(row);
  }
}

void advance_streams(const at::Tensor& token_class, const at::Tensor& next_state,
                     const at::Tensor& kind, const at::Tensor& after_flush,
                     const at::Tensor& at_limit, const at::Tensor& finish, const at::Tensor& pads,
                     int64_t max_delay, int64_t end_length, int64_t flush_length, int64_t error,
                     const at::Tensor& state, const at::Tensor& segment_start,
                     const at::Tensor& flush_end, const at::Tensor& limit,
                     const at::Tensor& history, const at::Tensor& slots,
                     const at::Tensor& position, const at::Tensor& discard,
                     const std::optional<at::Tensor>& rows, const at::Tensor& tokens,
                     const at::Tensor& outcome) {
  const AdvanceProblem problem = advance_problem(
      token_class, next_state, kind, after_flush, at_limit, finish, pads, max_delay, end_length,
      flush_length, error, state, segment_start, flush_end, limit, history, slots, position,
      discard, rows, tokens, outcome);
  for (int64_t group = 0; group < problem.num_groups; ++group) {
    problem.run(group);
  }
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CPU, m) {
  m.impl("gather_streams", unison::gather_streams);
  m.impl("begin_streams", unison::begin_streams);
  m.impl("advance_streams", unison::advance_streams);
}
