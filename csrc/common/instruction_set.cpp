// SPDX-License-Identifier: Apache-2.0
// Finds the processor's instruction sets, and lets tests choose among them.
#include "common/instruction_set.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <string>
#include <vector>

namespace unison {
namespace {

struct NamedSet {
  const char* name;
  InstructionSet set;
};

// Those this processor can run, the fastest last.
const std::vector<NamedSet>& available_sets() {
  static const std::vector<NamedSet> available = [] {
    std::vector<NamedSet> sets{{"baseline", InstructionSet::baseline}};
#ifdef UNISON_X86_LOOPS
    if (__builtin_cpu_supports("avx2")) {
      sets.push_back({"avx2", InstructionSet::avx2});
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      sets.push_back({"avx512", InstructionSet::avx512});
    }
#endif
    return sets;
  }();
  return available;
}

std::atomic<InstructionSet>& selection() {
  static std::atomic<InstructionSet> selected{available_sets().back().set};
  return selected;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const NamedSet& named : available_sets()) {
    names.emplace_back(named.name);
  }
  return names;
}

void set_instruction_set(std::string name) {
  for (const NamedSet& named : available_sets()) {
    if (name == named.name) {
      selection().store(named.set);
      return;
    }
  }
  TORCH_CHECK(false, "name must be one of ", instruction_sets(), ", not ", name);
}

}  // namespace

InstructionSet selected_instruction_set() { return selection().load(std::memory_order_relaxed); }

}  // namespace unison

TORCH_LIBRARY_IMPL(unison, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", unison::instruction_sets);
  m.impl("set_instruction_set", unison::set_instruction_set);
}
