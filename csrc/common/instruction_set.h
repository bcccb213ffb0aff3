// SPDX-License-Identifier: Apache-2.0
// Which version of the CPU loops runs. All versions give the same bits; they differ in speed only.
//
// A file of loops is included once per instruction set, inside a namespace of its own and with
// UNISON_LOOPS_TARGET set to the attribute that lets the compiler use that set.
#pragma once

namespace unison {

enum class InstructionSet : int { baseline, avx2, avx512 };

// The fastest one that this processor has, unless a test chose another.
InstructionSet selected_instruction_set();

}  // namespace unison

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define UNISON_X86_LOOPS 1
#define UNISON_AVX2_TARGET __attribute__((target("avx2")))
#define UNISON_AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#endif
