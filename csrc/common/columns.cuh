// SPDX-License-Identifier: Apache-2.0
// Kernels that sum rows: a block sums a stretch of one row, and a thread adds up columns of its own in
// the order given, so no thread waits for another.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/storage.h"

namespace unison {

constexpr int kColumnsPerThread = 4;

// The grid has blocks_per_row blocks for every row that is written, row by row.
struct RowLaunch {
  int64_t blocks_per_row;
  unsigned threads;
};

inline RowLaunch row_launch(int64_t width) {
  const int64_t threads = (width + kColumnsPerThread - 1) / kColumnsPerThread;
  const int64_t block = std::clamp<int64_t>((threads + 31) / 32 * 32, 32, 256);
  return {(threads + block - 1) / block, static_cast<unsigned>(block)};
}

// Columns [first, first + kColumnsPerThread) of a row, which are read and written 8 or 16 bytes at a
// time where their address allows it.
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

}  // namespace unison
