// SPDX-License-Identifier: Apache-2.0
// The CFG merge, the one place where the lanes of a group are combined:
//
//   merged[g] = sum over lanes i of weights[g, i] * values[members[g, i]]
//
// in float32, lane by lane in the order given, and rounded once. vllm/unison/ops/cfg_merge.py defines
// it and says where the engine calls it.
#pragma once

#include <cstdint>

#include "common/tensors.h"

namespace unison {

struct CfgMergeProblem {
  int64_t num_groups;
  int64_t max_lanes;  // of a group
  int64_t num_rows;   // of the values
  int64_t width;
  const void* values;
  int64_t value_stride;
  StridedView<const int64_t> members;  // [groups, lanes]
  StridedView<const float> weights;    // [groups, lanes]
  void* merged;
  int64_t merged_stride;

  // The row of the values that a lane has, -1 where the group has no such lane.
  UNISON_INLINE int64_t member(int64_t group, int64_t lane) const {
    const int64_t row = members(group, lane);
    return row >= 0 && row < num_rows ? row : -1;
  }
};

// The operator. launcher_t::cfg_merge<storage_t, out_t>(problem, device) computes a problem that has
// something to write.
template <typename launcher_t>
void cfg_merge(const at::Tensor& values, const at::Tensor& members, const at::Tensor& weights,
               const at::Tensor& merged) {
  check_floating(values, "values");
  check_floating(merged, "merged");
  check_contiguous_rows(values, "values");
  check_contiguous_rows(merged, "merged");
  check_device(members, "members", values);
  check_device(weights, "weights", values);
  check_device(merged, "merged", values);
  TORCH_CHECK(members.dim() == 2, "members must have 2 dimensions, not ", members.dim());
  TORCH_CHECK(weights.sizes() == members.sizes(), "weights must have the shape of members, ",
              members.sizes(), ", not ", weights.sizes());
  TORCH_CHECK(merged.size(0) == members.size(0) && merged.size(1) == values.size(1),
              "merged must have shape [", members.size(0), ", ", values.size(1), "], not ",
              merged.sizes());
  TORCH_CHECK(
      merged.scalar_type() == at::kFloat || merged.scalar_type() == values.scalar_type(),
      "merged must be float32 or of the type of values, ", values.scalar_type(), ", not ",
      merged.scalar_type());
  const CfgMergeProblem problem{
      members.size(0),
      members.size(1),
      values.size(0),
      values.size(1),
      values.const_data_ptr(),
      values.stride(0),
      matrix_view<const int64_t>(members, "members", members.size(0), members.size(1)),
      matrix_view<const float>(weights, "weights", members.size(0), members.size(1)),
      merged.mutable_data_ptr(),
      merged.stride(0)};
  if (problem.num_groups == 0 || problem.width == 0) {
    return;
  }
  with_storage(values, [&](auto storage) {
    using storage_t = decltype(storage);
    if (merged.scalar_type() == at::kFloat) {
      launcher_t::template cfg_merge<storage_t, float>(problem, values.device());
    } else {
      launcher_t::template cfg_merge<storage_t, storage_t>(problem, values.device());
    }
  });
}

}  // namespace unison
