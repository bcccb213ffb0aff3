// SPDX-License-Identifier: Apache-2.0
// Launches the CUDA sampler and registers it.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "sample/sample_kernel.cuh"

namespace unison {
namespace {

struct SampleOnCuda {
  template <typename storage_t>
  static void sample(const SampleProblem& problem, const LogitTensor<storage_t>& logits,
                     at::Device device) {
    const c10::cuda::CUDAGuard guard(device);
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
    const auto blocks = static_cast<unsigned>(problem.num_groups * problem.num_streams);
    if (problem.num_candidates <= kMaxCachedCandidates) {
      const size_t cache_bytes = static_cast<size_t>(problem.num_candidates) * sizeof(float);
      sample_streams_kernel<storage_t, true><<<blocks, 256, cache_bytes, stream>>>(problem, logits);
    } else {
      sample_streams_kernel<storage_t, false><<<blocks, 1024, 0, stream>>>(problem, logits);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CUDA, m) {
  m.impl("sample_streams", unison::sample_streams<unison::SampleOnCuda>);
}
