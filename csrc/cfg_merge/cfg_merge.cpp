// SPDX-License-Identifier: Apache-2.0
// merge_lanes and multistream_embed for CPU. vllm/multistream/row_sums.py defines what they compute.
#include "row_sums.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "instruction_set.h"

namespace unison {
namespace {
constexpr int64_t kSumBlock = 1024;
}  // namespace
}  // namespace unison

#define UNISON_LOOPS_NAMESPACE baseline_row_loops
#define UNISON_LOOPS_TARGET
#include "row_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET

#ifdef UNISON_X86_LOOPS
#define UNISON_LOOPS_NAMESPACE avx2_row_loops
#define UNISON_LOOPS_TARGET UNISON_AVX2_TARGET
#include "row_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET

#define UNISON_LOOPS_NAMESPACE avx512_row_loops
#define UNISON_LOOPS_TARGET UNISON_AVX512_TARGET
#include "row_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET
#endif

namespace unison {
namespace {

template <typename storage_t, typename out_t>
using SumRows = void (*)(const storage_t* const*, const float*, int64_t, int64_t, out_t*);

template <typename storage_t, typename out_t, bool weighted>
SumRows<storage_t, out_t> selected_sum() {
  switch (selected_instruction_set()) {
#ifdef UNISON_X86_LOOPS
    case InstructionSet::avx2:
      return avx2_row_loops::sum_rows<storage_t, out_t, weighted>;
    case InstructionSet::avx512:
      return avx512_row_loops::sum_rows<storage_t, out_t, weighted>;
#endif
    default:
      return baseline_row_loops::sum_rows<storage_t, out_t, weighted>;
  }
}

// Rows that a thread is worth waking for: some 64 Ki elements read.
int64_t grain_of(int64_t elements_per_row) {
  return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, elements_per_row));
}

template <typename storage_t, typename out_t>
void merge(const MergeProblem& problem) {
  const auto sum_rows = selected_sum<storage_t, out_t, true>();
  const storage_t* values = static_cast<const storage_t*>(problem.values);
  out_t* merged = static_cast<out_t*>(problem.merged);
  const int64_t grain = grain_of(problem.num_lanes * problem.width);
  at::parallel_for(0, problem.num_groups, grain, [&](int64_t begin, int64_t end) {
    std::vector<const storage_t*> rows(static_cast<size_t>(problem.num_lanes));
    std::vector<float> weights(static_cast<size_t>(problem.num_lanes));
    for (int64_t group = begin; group < end; ++group) {
      size_t count = 0;
      for (int64_t lane = 0; lane < problem.num_lanes; ++lane) {
        const int64_t row = problem.source(group, lane);
        if (row >= 0) {
          rows[count] = values + row * problem.value_stride;
          weights[count++] = problem.weight(group, lane);
        }
      }
      sum_rows(rows.data(), weights.data(), static_cast<int64_t>(count), problem.width,
               merged + group * problem.merged_stride);
    }
  });
}

void merge_lanes(const at::Tensor& values, const at::Tensor& sources, const at::Tensor& weights,
                 const at::Tensor& merged) {
  const MergeProblem problem = merge_problem(values, sources, weights, merged);
  with_storage(values, [&](auto storage) {
    using storage_t = decltype(storage);
    if (merged.scalar_type() == at::kFloat) {
      merge<storage_t, float>(problem);
    } else {
      merge<storage_t, storage_t>(problem);
    }
  });
}

constexpr size_t kCacheLine = 64;
constexpr size_t kMostPrefetched = 1024;  // processors find the rest of a long row by themselves

void prefetch(const void* start, size_t bytes) {
  const char* lines = static_cast<const char*>(start);
  for (size_t offset = 0; offset < std::min(bytes, kMostPrefetched); offset += kCacheLine) {
    __builtin_prefetch(lines + offset);
  }
}

template <typename storage_t>
void embed(const EmbeddingProblem& problem) {
  const auto sum_rows = selected_sum<storage_t, storage_t, false>();
  const storage_t* primary = static_cast<const storage_t*>(problem.primary);
  const storage_t* auxiliary = static_cast<const storage_t*>(problem.auxiliary);
  storage_t* out = static_cast<storage_t*>(problem.out);
  const int64_t grain = grain_of((1 + problem.num_auxiliary) * problem.width);
  const size_t most_rows = static_cast<size_t>(1 + problem.num_auxiliary);
  at::parallel_for(0, problem.num_tokens, grain, [&](int64_t begin, int64_t end) {
    // Rows lie anywhere in tables that no cache holds: those of the next token are asked for while
    // one token's are summed.
    std::vector<const storage_t*> rows(2 * most_rows);
    std::array<size_t, 2> counts{};
    const auto find = [&](int64_t token) {
      const storage_t** own = rows.data() + (token % 2) * most_rows;
      size_t count = 0;
      const int64_t first = problem.primary_row(token);
      if (first >= 0) {
        own[count++] = primary + first * problem.primary_stride;
      }
      for (int64_t stream = 0; stream < problem.num_auxiliary; ++stream) {
        const int64_t row = problem.auxiliary_row_of(token, stream);
        if (row >= 0) {
          own[count++] = auxiliary + row * problem.auxiliary_stride;
        }
      }
      counts[token % 2] = count;
      for (size_t row = 0; row < count; ++row) {
        prefetch(own[row], problem.width * sizeof(storage_t));
      }
    };
    find(begin);
    for (int64_t token = begin; token < end; ++token) {
      if (token + 1 < end) {
        find(token + 1);
      }
      sum_rows(rows.data() + (token % 2) * most_rows, nullptr,
               static_cast<int64_t>(counts[token % 2]), problem.width,
               out + token * problem.width);
    }
  });
}

at::Tensor multistream_embed(const at::Tensor& primary, const std::optional<at::Tensor>& primary_ids,
                             const std::optional<at::Tensor>& primary_skipped,
                             const at::Tensor& auxiliary_embedding, const at::Tensor& auxiliary_row,
                             const at::Tensor& auxiliary_ids) {
  const int64_t tokens = primary_ids.has_value() ? primary_ids->size(0) : primary.size(0);
  at::Tensor out = at::empty({tokens, primary.size(1)}, primary.options());
  const EmbeddingProblem problem =
      embedding_problem(primary, primary_ids, primary_skipped, auxiliary_embedding, auxiliary_row,
                        auxiliary_ids, out);
  with_storage(primary, [&](auto storage) { embed<decltype(storage)>(problem); });
  return out;
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CPU, m) {
  m.impl("merge_lanes", unison::merge_lanes);
  m.impl("multistream_embed", unison::multistream_embed);
}
