// SPDX-License-Identifier: Apache-2.0
// The CFG merge for CPU; see cfg_merge.h.
#include "cfg_merge/cfg_merge.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "common/sum_rows.h"

namespace unison {
namespace {

struct OnCpu {
  template <typename storage_t, typename out_t>
  static void cfg_merge(const CfgMergeProblem& problem, at::Device) {
    const auto sum_rows = selected_sum_rows<storage_t, out_t, true>();
    const storage_t* values = static_cast<const storage_t*>(problem.values);
    out_t* merged = static_cast<out_t*>(problem.merged);
    const int64_t grain = grain_of(problem.max_lanes * problem.width);
    at::parallel_for(0, problem.num_groups, grain, [&](int64_t begin, int64_t end) {
      std::vector<const storage_t*> rows(static_cast<size_t>(problem.max_lanes));
      std::vector<float> weights(static_cast<size_t>(problem.max_lanes));
      for (int64_t group = begin; group < end; ++group) {
        size_t count = 0;
        for (int64_t lane = 0; lane < problem.max_lanes; ++lane) {
          const int64_t row = problem.member(group, lane);
          if (row >= 0) {
            rows[count] = values + row * problem.value_stride;
            weights[count++] = problem.weights(group, lane);
          }
        }
        sum_rows(rows.data(), weights.data(), static_cast<int64_t>(count), problem.width,
                 merged + group * problem.merged_stride);
      }
    });
  }
};

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CPU, m) { m.impl("cfg_merge", unison::cfg_merge<unison::OnCpu>); }
