// SPDX-License-Identifier: Apache-2.0
// Sums of rows of a tensor, for one instruction set (see instruction_set.h).
//
// No #pragma once: the file is meant to be included several times. The functions use nothing from the
// standard library: a template instantiated here for one instruction set could be the one the linker
// keeps for all.

namespace unison {
namespace UNISON_LOOPS_NAMESPACE {

// sum[i] += weight * row[i]; without a weight sum[i] += row[i].
template <typename storage_t, bool weighted>
UNISON_LOOPS_TARGET void add_row(const storage_t* __restrict row, float weight, int64_t count,
                                 float* __restrict sum) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float value = to_float(row[i]);
    sum[i] = add(sum[i], weighted ? multiply(weight, value) : value);
  }
}

template <typename storage_t, bool weighted>
UNISON_LOOPS_TARGET void set_row(const storage_t* __restrict row, float weight, int64_t count,
                                 float* __restrict sum) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float value = to_float(row[i]);
    sum[i] = weighted ? multiply(weight, value) : value;
  }
}

// out = the sum of the rows, in order, in float32; rounded once. No rows give 0.
template <typename storage_t, typename out_t, bool weighted>
UNISON_LOOPS_TARGET void sum_rows(const storage_t* const* rows, const float* weights,
                                  int64_t num_rows, int64_t count, out_t* __restrict out) {
  alignas(64) float sum[kSumBlock];
  for (int64_t start = 0; start < count; start += kSumBlock) {
    const int64_t size = count - start < kSumBlock ? count - start : kSumBlock;
    if (num_rows == 0) {
      for (int64_t i = 0; i < size; ++i) {
        sum[i] = 0.0f;
      }
    } else {
      set_row<storage_t, weighted>(rows[0] + start, weighted ? weights[0] : 1.0f, size, sum);
    }
    for (int64_t row = 1; row < num_rows; ++row) {
      add_row<storage_t, weighted>(rows[row] + start, weighted ? weights[row] : 1.0f, size, sum);
    }
    out_t* target = out + start;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      from_float(sum[i], target[i]);
    }
  }
}

}  // namespace UNISON_LOOPS_NAMESPACE
}  // namespace unison
