// SPDX-License-Identifier: Apache-2.0
// Schemas of the operators in torch.ops.unison. The folders beside this one implement them, once for
// every device; the tests implement them once more, with the CUDA kernels emulated on the host.
#pragma once

#include <torch/library.h>

namespace unison {

inline void define_operators(torch::Library& library) {
  // sample/: one token per group and stream. vllm/unison/ops/sample.py describes the arguments.
  library.def(
      "sample_streams(Tensor logits, Tensor candidate_ids, Tensor masks, Tensor mask_index, "
      "Tensor temperature, Tensor top_k, Tensor top_p, Tensor seed, Tensor position, "
      "int first_stream, Tensor forced, Tensor(a!) tokens, Tensor? logit_rows, Tensor? rows, "
      "Tensor? slots) -> ()");

  // cfg_merge/: weighted sums over the active lanes of groups.
  library.def(
      "cfg_merge(Tensor values, Tensor members, Tensor weights, Tensor(a!) merged) -> ()");

  // embed/: the sum of the embeddings of a position's streams.
  library.def(
      "embed_streams(Tensor primary, Tensor? primary_ids, Tensor? primary_skipped, "
      "Tensor auxiliary_embedding, Tensor auxiliary_row, Tensor auxiliary_ids, Tensor(a!) out) -> ()");

  // phase_step/: what a step may emit, and what it does to its requests.
  library.def(
      "gather_streams(Tensor history, Tensor slots, Tensor rows, Tensor positions, "
      "Tensor(a!) ids) -> ()");
  library.def(
      "constrain_streams(Tensor kind, Tensor forced_token, Tensor delays, Tensor pads, "
      "Tensor fills, Tensor by_limit, Tensor first_step, Tensor early_mask, int max_delay, "
      "Tensor state, Tensor segment_start, Tensor flush_end, Tensor suffix_end, "
      "Tensor earliest_end, Tensor num_prompt, Tensor history, Tensor slots, Tensor position, "
      "Tensor(a!) forced, Tensor(b!) mask_index, Tensor(c!) tokens) -> ()");
  library.def(
      "find_repeats(Tensor code_begin, Tensor code_end, Tensor window, Tensor max_repeats, "
      "Tensor segment_start, Tensor history, Tensor slots, Tensor position, Tensor forced, "
      "Tensor tokens, Tensor(a!) redrawn) -> ()");
  library.def(
      "commit_streams(Tensor token_class, Tensor next_state, Tensor kind, Tensor after_flush, "
      "Tensor at_limit, Tensor finish, Tensor end_shift, Tensor extra_steps, Tensor first_step, "
      "Tensor any_ends, Tensor end_ids, Tensor pads, int max_delay, int end_length, int error, Tensor(a!) state, "
      "Tensor(b!) segment_start, Tensor(c!) flush_end, Tensor limit, Tensor num_prompt, "
      "Tensor(d!) history, Tensor slots, Tensor position, Tensor discard, Tensor? rows, Tensor(e!) tokens, Tensor(f!) outcome) -> ()");

  // common/: the sampler's building blocks, for tests that compare them with the PyTorch versions.
  library.def("deterministic_log(Tensor x) -> Tensor");
  library.def("deterministic_exp(Tensor x) -> Tensor");
  library.def("candidate_noise(int seed, int position, int stream, int num_candidates) -> Tensor[]");

  // Which version of the CPU loops runs: "baseline", "avx2" or "avx512". They give the same bits.
  library.def("instruction_sets() -> str[]");
  library.def("set_instruction_set(str name) -> ()");
}

}  // namespace unison
