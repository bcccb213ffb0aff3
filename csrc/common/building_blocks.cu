// SPDX-License-Identifier: Apache-2.0
// The sampler's mathematics as CUDA operators of their own, for tests.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>

#include "common/deterministic_math.h"

namespace unison {
namespace {

struct Logarithm {
  __device__ float operator()(float x) const { return deterministic_log(x); }
};
struct Exponential {
  __device__ float operator()(float x) const { return deterministic_exp(x); }
};

template <typename function_t>
__global__ void map_kernel(const float* from, float* to, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) {
    to[i] = function_t{}(from[i]);
  }
}

template <typename function_t>
at::Tensor map_float32(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous(),
              "x must be float32 and contiguous");
  at::Tensor result = at::empty_like(x);
  if (x.numel() != 0) {
    const c10::cuda::CUDAGuard guard(x.device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(x.get_device());
    const auto blocks = static_cast<unsigned>((x.numel() + 255) / 256);
    map_kernel<function_t><<<blocks, 256, 0, stream>>>(
        x.const_data_ptr<float>(), result.mutable_data_ptr<float>(), x.numel());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return result;
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CUDA, m) {
  m.impl("deterministic_log", unison::map_float32<unison::Logarithm>);
  m.impl("deterministic_exp", unison::map_float32<unison::Exponential>);
}
