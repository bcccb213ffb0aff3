// SPDX-License-Identifier: Apache-2.0
// The phase step for CPU; see phase_step.h. A row is a few dozen integers, so threads do not pay.
#include "phase_step/phase_step.h"

#include <torch/library.h>

namespace unison {
namespace {

struct OnCpu {
  template <typename problem_t>
  static void run(const problem_t& problem, int64_t count, at::Device) {
    for (int64_t i = 0; i < count; ++i) {
      problem.run(i);
    }
  }
};

}  // namespace
}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CPU, m) {
  m.impl("gather_streams", unison::gather_streams<unison::OnCpu>);
  m.impl("constrain_streams", unison::constrain_streams<unison::OnCpu>);
  m.impl("find_repeats", unison::find_repeats<unison::OnCpu>);
  m.impl("commit_streams", unison::commit_streams<unison::OnCpu>);
}
