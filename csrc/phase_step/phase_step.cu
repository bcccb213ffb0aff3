// SPDX-License-Identifier: Apache-2.0
// Launches the phase step's CUDA kernels and registers them.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "phase_step/phase_step_kernel.cuh"

namespace unison {
namespace {

struct PhaseStepOnCuda {
  template <typename problem_t>
  static void run(const problem_t& problem, int64_t count, at::Device device) {
    if (count == 0) {
      return;
    }
    const c10::cuda::CUDAGuard guard(device);
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
    run_each_kernel<<<static_cast<unsigned>((count + 63) / 64), 64, 0, stream>>>(problem, count);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CUDA, m) {
  m.impl("gather_streams", unison::gather_streams<unison::PhaseStepOnCuda>);
  m.impl("constrain_streams", unison::constrain_streams<unison::PhaseStepOnCuda>);
  m.impl("find_repeats", unison::find_repeats<unison::PhaseStepOnCuda>);
  m.impl("commit_streams", unison::commit_streams<unison::PhaseStepOnCuda>);
}
