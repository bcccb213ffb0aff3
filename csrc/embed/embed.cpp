// SPDX-License-Identifier: Apache-2.0
// The embeddings of a position's streams, summed, for CPU; see embed.h.
#include "embed/embed.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "common/sum_rows.h"

namespace unison {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kMaxPrefetched = 1024;  // bytes; processors find the rest of a long row themselves

void prefetch(const void* start, size_t bytes) {
  const char* lines = static_cast<const char*>(start);
  for (size_t offset = 0; offset < std::min(bytes, kMaxPrefetched); offset += kCacheLine) {
    __builtin_prefetch(lines + offset);
  }
}

struct OnCpu {
  template <typename storage_t>
  static void embed(const EmbedProblem& problem, at::Device) {
    const auto sum_rows = selected_sum_rows<storage_t, storage_t, false>();
    const storage_t* primary = static_cast<const storage_t*>(problem.primary);
    const storage_t* auxiliary = static_cast<const storage_t*>(problem.auxiliary);
    storage_t* out = static_cast<storage_t*>(problem.out);
    const int64_t grain = grain_of((1 + problem.num_auxiliary) * problem.width);
    const size_t max_rows = static_cast<size_t>(1 + problem.num_auxiliary);
    at::parallel_for(0, problem.num_tokens, grain, [&](int64_t begin, int64_t end) {
      // Rows lie anywhere in tables that no cache holds: those of the next token are prefetched while
      // one token's are summed.
      std::vector<const storage_t*> rows(2 * max_rows);
      std::array<size_t, 2> counts{};
      const auto find = [&](int64_t token) {
        const storage_t** own = rows.data() + (token % 2) * max_rows;
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
        sum_rows(rows.data() + (token % 2) * max_rows, nullptr,
                 static_cast<int64_t>(counts[token % 2]), problem.width,
                 out + token * problem.width);
      }
    });
  }
};

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CPU, m) {
  m.impl("embed_streams", unison::embed_streams<unison::OnCpu>);
}
