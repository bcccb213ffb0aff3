// SPDX-License-Identifier: Apache-2.0
// The CUDA sampler's kernel, run on the host.
#include <torch/library.h>

#include "cuda_emulation.h"
//
#include "multistream_sample_kernel.cuh"

namespace unison {

float cache[kMaxCachedCandidates];  // the kernel's dynamic shared memory

namespace {

template <typename storage_t>
void emulate(const SamplingProblem& problem, const at::Tensor& logits, bool cached,
             unsigned threads) {
  const LogitTensor<storage_t> source{static_cast<const storage_t*>(logits.const_data_ptr()),
                                      logits.stride(0), logits.stride(1)};
  std::mt19937 random(0);
  for (unsigned item = 0; item < problem.num_rows * problem.num_streams; ++item) {
    std::fill(std::begin(cache), std::end(cache), 12345.0f);
    cuda_emulation::run_block(
        item, threads,
        [&] {
          if (cached) {
            multistream_sample_kernel<storage_t, true>(problem, source);
          } else {
            multistream_sample_kernel<storage_t, false>(problem, source);
          }
        },
        random);
  }
}

void multistream_sample(const at::Tensor& logits, const at::Tensor& candidate_ids,
                        const at::Tensor& masks, const at::Tensor& mask_index,
                        const at::Tensor& temperature, const at::Tensor& top_k,
                        const at::Tensor& top_p, const at::Tensor& seed,
                        const at::Tensor& position, int64_t first_stream, const at::Tensor& forced,
                        const at::Tensor& tokens, bool cached, int64_t threads) {
  const SamplingProblem problem =
      sampling_problem(logits, candidate_ids, masks, mask_index, temperature, top_k, top_p, seed,
                       position, first_stream, forced, tokens);
  TORCH_CHECK(!cached || problem.num_candidates <= kMaxCachedCandidates, "too many to be cached");
  const auto block_size = static_cast<unsigned>(threads);
  if (logits.scalar_type() == at::kFloat) {
    emulate<float>(problem, logits, cached, block_size);
  } else if (logits.scalar_type() == at::kBFloat16) {
    emulate<Bfloat16Bits>(problem, logits, cached, block_size);
  } else {
    emulate<Float16Bits>(problem, logits, cached, block_size);
  }
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY(unison_emulation, m) {
  m.def(
      "multistream_sample(Tensor logits, Tensor candidate_ids, Tensor masks, Tensor mask_index, "
      "Tensor temperature, Tensor top_k, Tensor top_p, Tensor seed, Tensor position, "
      "int first_stream, Tensor forced, Tensor(a!) tokens, bool cached, int threads) -> ()",
      unison::multistream_sample);
}
