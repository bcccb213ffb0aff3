// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels, run on the host: torch.ops.unison_emulation has the operators of torch.ops.unison.
#include "cuda_emulation.h"
//
#include <stdexcept>

#include "cfg_merge/cfg_merge_kernel.cuh"
#include "common/schemas.h"
#include "embed/embed_kernel.cuh"
#include "phase_step/phase_step_kernel.cuh"
#include "sample/sample_kernel.cuh"

namespace unison {

float cache[kMaxCachedCandidates];  // the sampler's dynamic shared memory

namespace {

// What the launchers of the .cu files choose, and the tests vary.
struct Launch {
  int64_t threads = 256;
  bool cached = true;  // whether the sampler keeps scores in shared memory
} chosen;

void set_launch(int64_t threads, bool cached) { chosen = {threads, cached}; }

void run_blocks(int64_t blocks, const std::function<void()>& kernel) {
  std::mt19937 random(0);
  for (int64_t block = 0; block < blocks; ++block) {
    std::fill(std::begin(cache), std::end(cache), 12345.0f);
    cuda_emulation::run_block(static_cast<unsigned>(block), static_cast<unsigned>(chosen.threads),
                              kernel, random);
  }
}

int64_t blocks_for(int64_t count) { return (count + chosen.threads - 1) / chosen.threads; }

int64_t blocks_per_row(int64_t width) {
  return blocks_for((width + kColumnsPerThread - 1) / kColumnsPerThread);
}

struct Emulated {
  template <typename storage_t>
  static void sample(const SampleProblem& problem, const LogitTensor<storage_t>& logits,
                     at::Device) {
    if (chosen.cached && problem.num_candidates > kMaxCachedCandidates) {
      throw std::logic_error("too many candidates for the cache");
    }
    run_blocks(problem.num_groups * problem.num_streams, [&] {
      if (chosen.cached) {
        sample_streams_kernel<storage_t, true>(problem, logits);
      } else {
        sample_streams_kernel<storage_t, false>(problem, logits);
      }
    });
  }

  template <typename storage_t, typename out_t>
  static void cfg_merge(const CfgMergeProblem& problem, at::Device) {
    const int64_t blocks = blocks_per_row(problem.width);
    run_blocks(blocks * problem.num_groups,
               [&] { cfg_merge_kernel<storage_t, out_t>(problem, blocks); });
  }

  template <typename storage_t>
  static void embed(const EmbedProblem& problem, at::Device) {
    const int64_t blocks = blocks_per_row(problem.width);
    run_blocks(blocks * problem.num_tokens,
               [&] { embed_streams_kernel<storage_t>(problem, blocks); });
  }

  template <typename problem_t>
  static void run(const problem_t& problem, int64_t count, at::Device) {
    run_blocks(blocks_for(count), [&] { run_each_kernel(problem, count); });
  }
};

}  // namespace
}  // namespace unison

TORCH_LIBRARY(unison_emulation, m) {
  unison::define_operators(m);
  m.def("set_launch(int threads, bool cached) -> ()", unison::set_launch);
}

TORCH_LIBRARY_IMPL(unison_emulation, CPU, m) {
  m.impl("sample_streams", unison::sample_streams<unison::Emulated>);
  m.impl("cfg_merge", unison::cfg_merge<unison::Emulated>);
  m.impl("embed_streams", unison::embed_streams<unison::Emulated>);
  m.impl("gather_streams", unison::gather_streams<unison::Emulated>);
  m.impl("constrain_streams", unison::constrain_streams<unison::Emulated>);
  m.impl("find_repeats", unison::find_repeats<unison::Emulated>);
  m.impl("commit_streams", unison::commit_streams<unison::Emulated>);
}
