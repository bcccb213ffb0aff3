// SPDX-License-Identifier: Apache-2.0
// merge_lanes and multistream_embed for CUDA: a block sums a stretch of one row. A thread adds up its
// own columns, in the order given, so no thread waits for another.
#pragma once

#include <cstdint>

#include "row_sums.h"

namespace unison {

constexpr int kColumnsPerThread = 4;

// Columns [first, first + kColumnsPerThread) of a row, added to a sum of them. Rows are read 8 or 16
// bytes at a time where their address allows it.
template <typename storage_t>
struct alignas(sizeof(storage_t) * kColumnsPerThread) Pack {
  storage_t value[kColumnsPerThread];
};

template <typename storage_t>
__device__ __forceinline__ void load_columns(const storage_t* row, int64_t first, int64_t width,
                                             float* values) {
  const storage_t* from = row + first;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % sizeof(Pack<storage_t>) == 0;
  if (aligned && first + kColumnsPerThread <= width) {
    const Pack<storage_t> pack = *reinterpret_cast<const Pack<storage_t>*>(from);
#pragma unroll
    for (int i = 0; i < kColumnsPerThread; ++i) {
      values[i] = to_float(pack.value[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kColumnsPerThread; ++i) {
      values[i] = first + i < width ? to_float(from[i]) : 0.0f;
    }
  }
}

template <typename out_t>
__device__ __forceinline__ void store_columns(out_t* row, int64_t first, int64_t width,
                                              const float* values) {
  out_t* to = row + first;
  const bool aligned = reinterpret_cast<uintptr_t>(to) % sizeof(Pack<out_t>) == 0;
  if (aligned && first + kColumnsPerThread <= width) {
    Pack<out_t> pack;
#pragma unroll
    for (int i = 0; i < kColumnsPerThread; ++i) {
      from_float(values[i], pack.value[i]);
    }
    *reinterpret_cast<Pack<out_t>*>(to) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < kColumnsPerThread; ++i) {
      if (first + i < width) {
        from_float(values[i], to[i]);
      }
    }
  }
}

// Grid: (stretches of a row) x groups, with blockDim.x * kColumnsPerThread columns each.
template <typename storage_t, typename out_t>
__global__ void merge_lanes_kernel(MergeProblem problem, int64_t blocks_per_row) {
  const int64_t group = blockIdx.x / blocks_per_row;
  const int64_t block = blockIdx.x % blocks_per_row;
  const int64_t first = (block * blockDim.x + threadIdx.x) * kColumnsPerThread;
  if (first >= problem.width) {
    return;
  }
  const storage_t* values = static_cast<const storage_t*>(problem.values);
  float sum[kColumnsPerThread] = {};
  bool is_first = true;
  for (int64_t lane = 0; lane < problem.num_lanes; ++lane) {
    const int64_t row = problem.source(group, lane);
    if (row < 0) {
      continue;
    }
    const float weight = problem.weight(group, lane);
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

// Grid: (stretches of a row) x tokens.
template <typename storage_t>
__global__ void multistream_embed_kernel(EmbeddingProblem problem, int64_t blocks_per_row) {
  const int64_t token = blockIdx.x / blocks_per_row;
  const int64_t block = blockIdx.x % blocks_per_row;
  const int64_t first = (block * blockDim.x + threadIdx.x) * kColumnsPerThread;
  if (first >= problem.width) {
    return;
  }
  const storage_t* primary = static_cast<const storage_t*>(problem.primary);
  const storage_t* auxiliary = static_cast<const storage_t*>(problem.auxiliary);
  float sum[kColumnsPerThread] = {};
  bool is_first = true;
  for (int64_t stream = -1; stream < problem.num_auxiliary; ++stream) {
    const int64_t row =
        stream < 0 ? problem.primary_row(token) : problem.auxiliary_row_of(token, stream);
    if (row < 0) {
      continue;
    }
    const storage_t* from = stream < 0 ? primary + row * problem.primary_stride
                                       : auxiliary + row * problem.auxiliary_stride;
    float term[kColumnsPerThread];
    load_columns(from, first, problem.width, term);
#pragma unroll
    for (int i = 0; i < kColumnsPerThread; ++i) {
      sum[i] = is_first ? term[i] : add(sum[i], term[i]);
    }
    is_first = false;
  }
  store_columns(static_cast<storage_t*>(problem.out) + token * problem.width, first, problem.width,
                sum);
}

}  // namespace unison
