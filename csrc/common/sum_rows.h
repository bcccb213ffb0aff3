// SPDX-License-Identifier: Apache-2.0
// Sums of rows of a tensor on the CPU, by the processor's instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/deterministic_math.h"
#include "common/instruction_set.h"
#include "common/storage.h"

namespace unison {
constexpr int64_t kSumBlock = 1024;
}  // namespace unison

#define UNISON_LOOPS_NAMESPACE baseline_row_loops
#define UNISON_LOOPS_TARGET
#include "common/row_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET

#ifdef UNISON_X86_LOOPS
#define UNISON_LOOPS_NAMESPACE avx2_row_loops
#define UNISON_LOOPS_TARGET UNISON_AVX2_TARGET
#include "common/row_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET

#define UNISON_LOOPS_NAMESPACE avx512_row_loops
#define UNISON_LOOPS_TARGET UNISON_AVX512_TARGET
#include "common/row_loops.h"
#undef UNISON_LOOPS_NAMESPACE
#undef UNISON_LOOPS_TARGET
#endif

namespace unison {

template <typename storage_t, typename out_t>
using SumRows = void (*)(const storage_t* const* rows, const float* weights, int64_t num_rows,
                         int64_t count, out_t* out);

template <typename storage_t, typename out_t, bool weighted>
SumRows<storage_t, out_t> selected_sum_rows() {
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

// How many sums are worth waking a thread for: some 64 Ki elements are read.
inline int64_t grain_of(int64_t elements_per_sum) {
  return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, elements_per_sum));
}

}  // namespace unison
