// SPDX-License-Identifier: Apache-2.0
// Launches the CUDA kernel of the CFG merge and registers it.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cfg_merge/cfg_merge_kernel.cuh"

namespace unison {
namespace {

struct CfgMergeOnCuda {
  template <typename storage_t, typename out_t>
  static void cfg_merge(const CfgMergeProblem& problem, at::Device device) {
    const c10::cuda::CUDAGuard guard(device);
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
    const RowLaunch launch = row_launch(problem.width);
    const auto blocks = static_cast<unsigned>(launch.blocks_per_row * problem.num_groups);
    cfg_merge_kernel<storage_t, out_t>
        <<<blocks, launch.threads, 0, stream>>>(problem, launch.blocks_per_row);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CUDA, m) {
  m.impl("cfg_merge", unison::cfg_merge<unison::CfgMergeOnCuda>);
}
