// SPDX-License-Identifier: Apache-2.0
// Launches the CUDA kernel that sums the embeddings of a position's streams, and registers it.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "embed/embed_kernel.cuh"

namespace unison {
namespace {

struct EmbedOnCuda {
  template <typename storage_t>
  static void embed(const EmbedProblem& problem, at::Device device) {
    const c10::cuda::CUDAGuard guard(device);
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
    const RowLaunch launch = row_launch(problem.width);
    const auto blocks = static_cast<unsigned>(launch.blocks_per_row * problem.num_tokens);
    embed_streams_kernel<storage_t>
        <<<blocks, launch.threads, 0, stream>>>(problem, launch.blocks_per_row);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CUDA, m) {
  m.impl("embed_streams", unison::embed_streams<unison::EmbedOnCuda>);
}
