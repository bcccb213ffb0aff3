// SPDX-License-Identifier: Apache-2.0
// Launches the phase rule's CUDA kernels and registers them.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "stream_phases_kernel.cuh"

namespace unison {
namespace {

template <typename problem_t>
void run_each(const problem_t& problem, int64_t count, const at::Tensor& on) {
  if (count == 0) {
    return;
  }
  const c10::cuda::CUDAGuard guard(on.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(on.get_device());
  run_each_kernel<<<static_cast<unsigned>((count + 63) / 64), 64, 0, stream>>>(problem, count);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void gather_streams_cuda(const at::Tensor& history, const at::Tensor& slots, const at::Tensor& rows,
                         const at::Tensor& positions, const at::Tensor& ids) {
  const GatherProblem problem = gather_problem(history, slots, rows, positions, ids);
  run_each(problem, problem.num_tokens, history);
}

void begin_streams_cuda(const at::Tensor& kind, const at::Tensor& forced_token,
                        const at::Tensor& delays, const at::Tensor& pads, int64_t max_delay,
                        const at::Tensor& state, const at::Tensor& segment_start,
                        const at::Tensor& flush_end, const at::Tensor& tail_end,
                        const at::Tensor& earliest_end, const at::Tensor& history,
                        const at::Tensor& slots, const at::Tensor& position,
                        const at::Tensor& forced, const at::Tensor& mask_index,
                        const at::Tensor& tokens) {
  const BeginProblem problem = begin_problem(
      kind, forced_token, delays, pads, max_delay, state, segment_start, flush_end, tail_end,
      earliest_end, history, slots, position, forced, mask_index, tokens);
  run_each(problem, problem.num_rows, history);
}

void advance_streams_cuda(const at::Tensor& token_class, const at::Tensor& next_state,
                          const at::Tensor& kind, const at::Tensor& after_flush,
                          const at::Tensor& at_limit, const at::Tensor& finish,
                          const at::Tensor& pads, int64_t max_delay, int64_t end_length,
                          int64_t flush_length, int64_t error, const at::Tensor& state,
                          const at::Tensor& segment_start, const at::Tensor& flush_end,
                          const at::Tensor& limit, const at::Tensor& history,
                          const at::Tensor& slots, const at::Tensor& position,
                          const at::Tensor& discard, const std::optional<at::Tensor>& rows,
                          const at::Tensor& tokens, const at::Tensor& outcome) {
  const AdvanceProblem problem = advance_problem(
      token_class, next_state, kind, after_flush, at_limit, finish, pads, max_delay, end_length,
      flush_length, error, state, segment_start, flush_end, limit, history, slots, position,
      discard, rows, tokens, outcome);
  run_each(problem, problem.num_groups, history);
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CUDA, m) {
  m.impl("gather_streams", unison::gather_streams_cuda);
  m.impl("begin_streams", unison::begin_streams_cuda);
  m.impl("advance_streams", unison::advance_streams_cuda);
}
