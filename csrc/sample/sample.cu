// SPDX-License-Identifier: Apache-2.0
// Launches the CUDA sampler and registers it.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "multistream_sample_kernel.cuh"

namespace unison {
namespace {

template <typename storage_t>
void launch(const SamplingProblem& problem, const at::Tensor& logits) {
  const LogitTensor<storage_t> source{static_cast<const storage_t*>(logits.const_data_ptr()),
                                      logits.stride(0), logits.stride(1)};
  const auto blocks = static_cast<unsigned>(problem.num_groups * problem.num_streams);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(logits.get_device());
  if (problem.num_candidates <= kMaxCachedCandidates) {
    const size_t cache_bytes = static_cast<size_t>(problem.num_candidates) * sizeof(float);
    multistream_sample_kernel<storage_t, true><<<blocks, 256, cache_bytes, stream>>>(problem, source);
  } else {
    multistream_sample_kernel<storage_t, false><<<blocks, 1024, 0, stream>>>(problem, source);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void guided_multistream_sample_cuda(
    const at::Tensor& logits, const at::Tensor& candidate_ids, const at::Tensor& masks,
    const at::Tensor& mask_index, const at::Tensor& temperature, const at::Tensor& top_k,
    const at::Tensor& top_p, const at::Tensor& seed, const at::Tensor& position,
    int64_t first_stream, const at::Tensor& forced, const at::Tensor& tokens,
    const std::optional<at::Tensor>& sources, const std::optional<at::Tensor>& weights,
    const std::optional<at::Tensor>& rows, const std::optional<at::Tensor>& slots,
    const std::optional<at::Tensor>& log_probability) {
  const SamplingProblem problem = sampling_problem(
      logits, candidate_ids, masks, mask_index, temperature, top_k, top_p, seed, position,
      first_stream, forced, tokens, sources, weights, rows, slots, log_probability);
  if (problem.num_groups == 0 || problem.num_streams == 0) {
    return;
  }
  const c10::cuda::CUDAGuard guard(logits.device());
  if (logits.scalar_type() == at::kFloat) {
    launch<float>(problem, logits);
  } else if (logits.scalar_type() == at::kBFloat16) {
    launch<Bfloat16Bits>(problem, logits);
  } else {
    launch<Float16Bits>(problem, logits);
  }
}

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
at::Tensor map_float32_cuda(const at::Tensor& x) {
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
  m.impl("guided_multistream_sample", unison::guided_multistream_sample_cuda);
  m.impl("deterministic_log", unison::map_float32_cuda<unison::Logarithm>);
  m.impl("deterministic_exp", unison::map_float32_cuda<unison::Exponential>);
}
