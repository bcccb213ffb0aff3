// SPDX-License-Identifier: Apache-2.0
// Launches the CUDA kernels that sum rows, and registers them.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "row_sums_kernel.cuh"

namespace unison {
namespace {

struct Launch {
  int64_t blocks_per_row;
  unsigned threads;
};

Launch launch_of(int64_t width) {
  const int64_t threads = (width + kColumnsPerThread - 1) / kColumnsPerThread;
  const int64_t block = std::clamp<int64_t>((threads + 31) / 32 * 32, 32, 256);
  return {(threads + block - 1) / block, static_cast<unsigned>(block)};
}

void merge_lanes_cuda(const at::Tensor& values, const at::Tensor& sources,
                      const at::Tensor& weights, const at::Tensor& merged) {
  const MergeProblem problem = merge_problem(values, sources, weights, merged);
  if (problem.num_groups == 0 || problem.width == 0) {
    return;
  }
  const c10::cuda::CUDAGuard guard(values.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(values.get_device());
  const Launch launch = launch_of(problem.width);
  const auto blocks = static_cast<unsigned>(launch.blocks_per_row * problem.num_groups);
  with_storage(values, [&](auto storage) {
    using storage_t = decltype(storage);
    if (merged.scalar_type() == at::kFloat) {
      merge_lanes_kernel<storage_t, float>
          <<<blocks, launch.threads, 0, stream>>>(problem, launch.blocks_per_row);
    } else {
      merge_lanes_kernel<storage_t, storage_t>
          <<<blocks, launch.threads, 0, stream>>>(problem, launch.blocks_per_row);
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor multistream_embed_cuda(const at::Tensor& primary,
                                  const std::optional<at::Tensor>& primary_ids,
                                  const std::optional<at::Tensor>& primary_skipped,
                                  const at::Tensor& auxiliary_embedding,
                                  const at::Tensor& auxiliary_row,
                                  const at::Tensor& auxiliary_ids) {
  const int64_t tokens = primary_ids.has_value() ? primary_ids->size(0) : primary.size(0);
  at::Tensor out = at::empty({tokens, primary.size(1)}, primary.options());
  const EmbeddingProblem problem =
      embedding_problem(primary, primary_ids, primary_skipped, auxiliary_embedding, auxiliary_row,
                        auxiliary_ids, out);
  if (problem.num_tokens == 0 || problem.width == 0) {
    return out;
  }
  const c10::cuda::CUDAGuard guard(primary.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(primary.get_device());
  const Launch launch = launch_of(problem.width);
  const auto blocks = static_cast<unsigned>(launch.blocks_per_row * problem.num_tokens);
  with_storage(primary, [&](auto storage) {
    multistream_embed_kernel<decltype(storage)>
        <<<blocks, launch.threads, 0, stream>>>(problem, launch.blocks_per_row);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CUDA, m) {
  m.impl("merge_lanes", unison::merge_lanes_cuda);
  m.impl("multistream_embed", unison::multistream_embed_cuda);
}
