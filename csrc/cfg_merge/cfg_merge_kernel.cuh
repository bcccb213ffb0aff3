// SPDX-License-Identifier: Apache-2.0
// The CFG merge for CUDA; see cfg_merge.h.
#pragma once

#include <cstdint>

#include "cfg_merge/cfg_merge.h"
#include "common/columns.cuh"

namespace unison {

// Grid: blocks_per_row blocks of blockDim.x * kColumnsPerThread columns for each group.
template <typename storage_t, typename out_t>
__global__ void cfg_merge_kernel(CfgMergeProblem problem, int64_t blocks_per_row) {
  const int64_t group = blockIdx.x / blocks_per_row;
  const int64_t block = blockIdx.x % blocks_per_row;
  const int64_t first = (block * blockDim.x + threadIdx.x) * kColumnsPerThread;
  if (first >= problem.width) {
    return;
  }
  const storage_t* values = static_cast<const storage_t*>(problem.values);
  float sum[kColumnsPerThread] = {};
  bool is_first = true;
  for (int64_t lane = 0; lane < problem.max_lanes; ++lane) {
    const int64_t row = problem.member(group, lane);
    if (row < 0) {
      continue;
    }
    const float weight = problem.weights(group, lane);
    float term[kColumnsPerThread];
    load_columns(values + row * problem.value_stride, first, problem.width, term);
#pragma unroll
    for (int i = 0; i < kColumnsPerThread; ++i) {
      const float value = multiply(weight, term[i]);
      sum[i] = is_first ? value : add(sum[i], value);
    }
    is_first = false;
  }
  store_columns(static_cast<out_t*>(problem.merged) + group * problem.merged_stride, first,
                problem.width, sum);
}

}  // namespace unison
