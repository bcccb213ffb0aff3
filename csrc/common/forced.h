// SPDX-License-Identifier: Apache-2.0
// Values of `forced` that are not tokens: what the phase step tells the sampler about an item.
#pragma once

#include <cstdint>

namespace unison {

constexpr int32_t kSample = -1;
// This value and everything below it: the output stays as it is, because another call decides the item.
// vllm.unison.ops.sample.KEEP_OUTPUT.
constexpr int32_t kKeepOutput = -2;

}  // namespace unison
