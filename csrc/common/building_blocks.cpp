// SPDX-License-Identifier: Apache-2.0
// The sampler's mathematics and random numbers as operators of their own, for tests.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstdint>
#include <vector>

#include "common/deterministic_math.h"
#include "common/philox.h"

namespace unison {
namespace {

template <float (*function)(float)>
at::Tensor map_float32(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous(),
              "x must be float32 and contiguous");
  at::Tensor result = at::empty(x.sizes(), x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    to[i] = function(from[i]);
  }
  return result;
}

float log_scalar(float x) { return deterministic_log(x); }
float exp_scalar(float x) { return deterministic_exp(x); }

// Random words (int64 [num_candidates]) and noise (float32 [num_candidates]) of one item.
std::vector<at::Tensor> candidate_noise(int64_t seed, int64_t position, int64_t stream,
                                        int64_t num_candidates) {
  const NoiseKey key{static_cast<uint64_t>(seed), static_cast<uint64_t>(position),
                     static_cast<uint32_t>(stream)};
  at::Tensor words = at::empty({num_candidates}, at::kLong);
  at::Tensor noise = at::empty({num_candidates}, at::kFloat);
  for (int64_t i = 0; i < num_candidates; ++i) {
    const uint32_t word = key.words(static_cast<uint32_t>(i / 4)).word[i % 4];
    words.mutable_data_ptr<int64_t>()[i] = word;
    noise.mutable_data_ptr<float>()[i] = gumbel_noise(word);
  }
  return {words, noise};
}

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CPU, m) {
  m.impl("deterministic_log", unison::map_float32<unison::log_scalar>);
  m.impl("deterministic_exp", unison::map_float32<unison::exp_scalar>);
}

TORCH_LIBRARY_IMPL(unison, CompositeExplicitAutograd, m) {
  m.impl("candidate_noise", unison::candidate_noise);
}
