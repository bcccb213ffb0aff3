// SPDX-License-Identifier: Apache-2.0
// Reading a group's logits: the weighted sum over its lanes, the one place that knows how logits are
// stored and merged.
#pragma once

#include <cstdint>

#include "deterministic_math.h"
#include "storage.h"

namespace unison {

template <typename storage_t>
struct LogitTensor {
  const storage_t* data;
  int64_t row_stride;
  int64_t stream_stride;  // candidates are contiguous

  UNISON_INLINE const storage_t* at(int64_t row, int64_t stream) const {
    return data + row * row_stride + stream * stream_stride;
  }
};

// The rows of logits that an item merges. An index that is no row of logits is no lane.
struct ItemSources {
  const int64_t* rows;  // null: one lane, row `single`, with weight 1
  int64_t row_stride;
  const float* weights;
  int64_t weight_stride;
  int64_t count;
  int64_t single;
  int64_t num_logit_rows;

  UNISON_INLINE bool exists(int64_t lane) const {
    const int64_t row = rows[lane * row_stride];
    return row >= 0 && row < num_logit_rows;
  }
  UNISON_INLINE int64_t row(int64_t lane) const { return rows[lane * row_stride]; }
  UNISON_INLINE float weight(int64_t lane) const { return weights[lane * weight_stride]; }
};

}  // namespace unison
