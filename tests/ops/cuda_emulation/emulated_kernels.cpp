// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels, run on the host.
#include <torch/library.h>

#include "cuda_emulation.h"
//
#include "multistream_sample_kernel.cuh"
#include "row_sums_kernel.cuh"
#include "stream_phases_kernel.cuh"

namespace unison {

float cache[kMaxCachedCandidates];  // the sampler's dynamic shared memory

namespace {

void run_blocks(int64_t blocks, int64_t threads, const std::function<void()>& kernel) {
  std::mt19937 random(0);
  for (int64_t block = 0; block < blocks; ++block) {
    std::fill(std::begin(cache), std::end(cache), 12345.0f);
    cuda_emulation::run_block(static_cast<unsigned>(block), static_cast<unsigned>(threads), kernel,
                              random);
  }
}

void guided_multistream_sample(
    const at::Tensor& logits, const at::Tensor& candidate_ids, const at::Tensor& masks,
    const at::Tensor& mask_index, const at::Tensor& temperature, const at::Tensor& top_k,
    const at::Tensor& top_p, const at::Tensor& seed, const at::Tensor& position,
    int64_t first_stream, const at::Tensor& forced, const at::Tensor& tokens,
    const std::optional<at::Tensor>& sources, const std::optional<at::Tensor>& weights,
    const std::optional<at::Tensor>& rows, const std::optional<at::Tensor>& slots,
    const std::optional<at::Tensor>& log_probability, bool cached, int64_t threads) {
  const SamplingProblem problem = sampling_problem(
      logits, candidate_ids, masks, mask_index, temperature, top_k, top_p, seed, position,
      first_stream, forced, tokens, sources, weights, rows, slots, log_probability);
  TORCH_CHECK(!cached || problem.num_candidates <= kMaxCachedCandidates, "too many to be cached");
  with_storage(logits, [&](auto storage) {
    using storage_t = decltype(storage);
    const LogitTensor<storage_t> source{static_cast<const storage_t*>(logits.const_data_ptr()),
                                        logits.stride(0), logits.stride(1)};
    run_blocks(problem.num_groups * problem.num_streams, threads, [&] {
      if (cached) {
        multistream_sample_kernel<storage_t, true>(problem, source);
      } else {
        multistream_sample_kernel<storage_t, false>(problem, source);
      }
    });
  });
}

int64_t blocks_per_row(int64_t width, int64_t threads) {
  return (width + threads * kColumnsPerThread - 1) / (threads * kColumnsPerThread);
}

void merge_lanes(const at::Tensor& values, const at::Tensor& sources, const at::Tensor& weights,
                 const at::Tensor& merged, int64_t threads) {
  const MergeProblem problem = merge_problem(values, sources, weights, merged);
  const int64_t blocks = blocks_per_row(problem.width, threads);
  with_storage(values, [&](auto storage) {
    using storage_t = decltype(storage);
    run_blocks(blocks * problem.num_groups, threads, [&] {
      if (merged.scalar_type() == at::kFloat) {
        merge_lanes_kernel<storage_t, float>(problem, blocks);
      } else {
        merge_lanes_kernel<storage_t, storage_t>(problem, blocks);
      }
    });
  });
}

void multistream_embed(const at::Tensor& primary, const std::optional<at::Tensor>& primary_ids,
                       const std::optional<at::Tensor>& primary_skipped,
                       const at::Tensor& auxiliary_embedding, const at::Tensor& auxiliary_row,
                       const at::Tensor& auxiliary_ids, const at::Tensor& out, int64_t threads) {
  const EmbeddingProblem problem =
      embedding_problem(primary, primary_ids, primary_skipped, auxiliary_embedding, auxiliary_row,
                        auxiliary_ids, out);
  const int64_t blocks = blocks_per_row(problem.width, threads);
  with_storage(primary, [&](auto storage) {
    run_blocks(blocks * problem.num_tokens, threads,
               [&] { multistream_embed_kernel<decltype(storage)>(problem, blocks); });
  });
}

template <typename problem_t>
void run_each(const problem_t& problem, int64_t count) {
  run_blocks((count + 31) / 32, 32, [&] { run_each_kernel(problem, count); });
}

void gather_streams(const at::Tensor& history, const at::Tensor& slots, const at::Tensor& rows,
                    const at::Tensor& positions, const at::Tensor& ids) {
  const GatherProblem problem = gather_problem(history, slots, rows, positions, ids);
  run_each(problem, problem.num_tokens);
}

void begin_streams(const at::Tensor& kind, const at::Tensor& forced_token, const at::Tensor& delays,
                   const at::Tensor& pads, int64_t max_delay, const at::Tensor& state,
                   const at::Tensor& segment_start, const at::Tensor& flush_end,
                   const at::Tensor& tail_end, const at::Tensor& earliest_end,
                   const at::Tensor& history, const at::Tensor& slots, const at::Tensor& position,
                   const at::Tensor& forced, const at::Tensor& mask_index,
                   const at::Tensor& tokens) {
  const BeginProblem problem = begin_problem(
      kind, forced_token, delays, pads, max_delay, state, segment_start, flush_end, tail_end,
      earliest_end, history, slots, position, forced, mask_index, tokens);
  run_each(problem, problem.num_rows);
}

void advance_streams(const at::Tensor& token_class, const at::Tensor& next_state,
                     const at::Tensor& kind, const at::Tensor& after_flush,
                     const at::Tensor& at_limit, const at::Tensor& finish, const at::Tensor& pads,
                     int64_t max_delay, int64_t end_length, int64_t flush_length, int64_t error,
                     const at::Tensor& state, const at::Tensor& segment_start,
                     const at::Tensor& flush_end, const at::Tensor& limit,
                     const at::Tensor& history, const at::Tensor& slots,
                     const at::Tensor& position, const at::Tensor& discard,
                     const std::optional<at::Tensor>& rows, const at::Tensor& tokens,
                     const at::Tensor& outcome) {
  const AdvanceProblem problem = advance_problem(
      token_class, next_state, kind, after_flush, at_limit, finish, pads, max_delay, end_length,
      flush_length, error, state, segment_start, flush_end, limit, history, slots, position,
      discard, rows, tokens, outcome);
  run_each(problem, problem.num_groups);
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY(unison_emulation, m) {
  m.def(
      "guided_multistream_sample(Tensor logits, Tensor candidate_ids, Tensor masks, "
      "Tensor mask_index, Tensor temperature, Tensor top_k, Tensor top_p, Tensor seed, "
      "Tensor position, int first_stream, Tensor forced, Tensor(a!) tokens, Tensor? sources, "
      "Tensor? weights, Tensor? rows, Tensor? slots, Tensor(b!)? log_probability, bool cached, "
      "int threads) -> ()",
      unison::guided_multistream_sample);
  m.def(
      "merge_lanes(Tensor values, Tensor sources, Tensor weights, Tensor(a!) merged, int threads) "
      "-> ()",
      unison::merge_lanes);
  m.def(
      "multistream_embed(Tensor primary, Tensor? primary_ids, Tensor? primary_skipped, "
      "Tensor auxiliary_embedding, Tensor auxiliary_row, Tensor auxiliary_ids, Tensor(a!) out, "
      "int threads) -> ()",
      unison::multistream_embed);
  m.def(
      "gather_streams(Tensor history, Tensor slots, Tensor rows, Tensor positions, "
      "Tensor(a!) ids) -> ()",
      unison::gather_streams);
  m.def(
      "begin_streams(Tensor kind, Tensor forced_token, Tensor delays, Tensor pads, int max_delay, "
      "Tensor state, Tensor segment_start, Tensor flush_end, Tensor tail_end, Tensor earliest_end, "
      "Tensor history, Tensor slots, Tensor position, Tensor(a!) forced, Tensor(b!) mask_index, "
      "Tensor(c!) tokens) -> ()",
      unison::begin_streams);
  m.def(
      "advance_streams(Tensor token_class, Tensor next_state, Tensor kind, Tensor after_flush, "
      "Tensor at_limit, Tensor finish, Tensor pads, int max_delay, int end_length, "
      "int flush_length, int error, Tensor(a!) state, Tensor(b!) segment_start, "
      "Tensor(c!) flush_end, Tensor limit, Tensor(d!) history, Tensor slots, Tensor position, "
      "Tensor discard, Tensor? rows, Tensor(e!) tokens, Tensor(f!) outcome) -> ()",
      unison::advance_streams);
}
