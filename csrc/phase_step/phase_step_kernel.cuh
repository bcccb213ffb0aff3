// SPDX-License-Identifier: Apache-2.0
// The phase rule's kernels: one thread per row, token or group, each a few dozen integers.
#pragma once

#include <cstdint>

#include "stream_phases.h"

namespace unison {

// problem.run(i) for every i below `count`.
template <typename problem_t>
__global__ void run_each_kernel(problem_t problem, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) {
    problem.run(i);
  }
}

}  // namespace unison
