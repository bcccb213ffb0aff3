// SPDX-License-Identifier: Apache-2.0
// Schemas of the operators in torch.ops.unison. Implementations register themselves by device.
#include <torch/library.h>

TORCH_LIBRARY(unison, m) {
  m.def(
      "guided_multistream_sample(Tensor logits, Tensor candidate_ids, Tensor masks, "
      "Tensor mask_index, Tensor temperature, Tensor top_k, Tensor top_p, Tensor seed, "
      "Tensor position, int first_stream, Tensor forced, Tensor(a!) tokens, Tensor? sources, "
      "Tensor? weights, Tensor? rows, Tensor? slots, Tensor(b!)? log_probability) -> ()");

  // Rows of a tensor, summed: lanes of a group; embeddings of a position's streams.
  m.def(
      "merge_lanes(Tensor values, Tensor sources, Tensor weights, Tensor(a!) merged) -> ()");
  m.def(
      "multistream_embed(Tensor primary, Tensor? primary_ids, Tensor? primary_skipped, "
      "Tensor auxiliary_embedding, Tensor auxiliary_row, Tensor auxiliary_ids) -> Tensor");

  // The rule of phases for a step's batch; see vllm/multistream/phases.py.
  m.def(
      "gather_streams(Tensor history, Tensor slots, Tensor rows, Tensor positions, "
      "Tensor(a!) ids) -> ()");
  m.def(
      "begin_streams(Tensor kind, Tensor forced_token, Tensor delays, Tensor pads, int max_delay, "
      "Tensor state, Tensor segment_start, Tensor flush_end, Tensor tail_end, Tensor earliest_end, "
      "Tensor history, Tensor slots, Tensor position, Tensor(a!) forced, Tensor(b!) mask_index, "
      "Tensor(c!) tokens) -> ()");
  m.def(
      "advance_streams(Tensor token_class, Tensor next_state, Tensor kind, Tensor after_flush, "
      "Tensor at_limit, Tensor finish, Tensor pads, int max_delay, int end_length, "
      "int flush_length, int error, Tensor(a!) state, Tensor(b!) segment_start, "
      "Tensor(c!) flush_end, Tensor limit, Tensor(d!) history, Tensor slots, Tensor position, "
      "Tensor discard, Tensor? rows, Tensor(e!) tokens, Tensor(f!) outcome) -> ()");

  // The sampler's building blocks, for tests that compare them with the PyTorch versions.
  m.def("deterministic_log(Tensor x) -> Tensor");
  m.def("deterministic_exp(Tensor x) -> Tensor");
  m.def("candidate_noise(int seed, int position, int stream, int num_candidates) -> Tensor[]");

  // Which version of the CPU loops runs: "baseline", "avx2" or "avx512". They give the same bits.
  m.def("instruction_sets() -> str[]");
  m.def("set_instruction_set(str name) -> ()");
}
