// SPDX-License-Identifier: Apache-2.0
// The embeddings of a position's streams, summed, for CUDA; see embed.h.
#pragma once

#include <cstdint>

#include "common/columns.cuh"
#include "embed/embed.h"

namespace unison {

// Grid: blocks_per_row blocks of blockDim.x * kColumnsPerThread columns for each token.
template <typename storage_t>
__global__ void embed_streams_kernel(EmbedProblem problem, int64_t blocks_per_row) {
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
