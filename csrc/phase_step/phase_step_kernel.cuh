// SPDX-License-Identifier: Apache-2.0
// The phase step's kernels: one thread per token, row or group, each a few dozen integers.
#pragma once

#include <cstdint>

#include "phase_step/phase_step.h"

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
