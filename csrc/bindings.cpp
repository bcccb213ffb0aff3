// SPDX-License-Identifier: Apache-2.0
// Schemas of the operators in torch.ops.unison. Implementations register themselves by device.
#include <torch/library.h>

TORCH_LIBRARY(unison, m) {
  m.def(
      "multistream_sample(Tensor logits, Tensor candidate_ids, Tensor masks, Tensor mask_index, "
      "Tensor temperature, Tensor top_k, Tensor top_p, Tensor seed, Tensor position, "
      "int first_stream, Tensor forced, Tensor(a!) tokens) -> ()");

  // The sampler's building blocks, for tests that compare them with the PyTorch versions.
  m.def("deterministic_log(Tensor x) -> Tensor");
  m.def("deterministic_exp(Tensor x) -> Tensor");
  m.def("candidate_noise(int seed, int position, int stream, int num_candidates) -> Tensor[]");

  // Which version of the CPU loops runs: "baseline", "avx2" or "avx512". They give the same tokens.
  m.def("sampler_instruction_sets() -> str[]");
  m.def("set_sampler_instruction_set(str name) -> ()");
}
