// SPDX-License-Identifier: Apache-2.0
// Runs a CUDA kernel on the host, one block after the other, to test its logic without a GPU.
//
// A thread of the block is a fiber that runs until its next __syncthreads. The order of the fibers
// changes at every barrier: a missing barrier shows as a wrong result for some order. A barrier that
// only part of the threads reach is an error. Warp reductions exchange values between two barriers of
// the whole block, which asks more of the kernel than CUDA does: that all its warps reduce equally
// often.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct EmulatedIndex {
  unsigned x;
};
inline EmulatedIndex threadIdx, blockIdx, blockDim;
constexpr unsigned warpSize = 32;

namespace cuda_emulation {

struct Block {
  ucontext_t scheduler;
  std::vector<ucontext_t> fibers;
  std::vector<std::vector<char>> stacks;
  std::vector<bool> finished;
  std::function<void()> kernel;
};
inline Block block;

inline void run_fiber() {
  block.kernel();
  block.finished[threadIdx.x] = true;
  swapcontext(&block.fibers[threadIdx.x], &block.scheduler);
}

inline void run_block(unsigned index, unsigned threads, std::function<void()> kernel,
                      std::mt19937& random) {
  blockIdx.x = index;
  blockDim.x = threads;
  block.kernel = std::move(kernel);
  block.fibers.resize(threads);
  block.stacks.resize(threads);
  block.finished.assign(threads, false);
  for (unsigned thread = 0; thread < threads; ++thread) {
    block.stacks[thread].resize(1 << 16);
    getcontext(&block.fibers[thread]);
    block.fibers[thread].uc_stack.ss_sp = block.stacks[thread].data();
    block.fibers[thread].uc_stack.ss_size = block.stacks[thread].size();
    block.fibers[thread].uc_link = nullptr;
    makecontext(&block.fibers[thread], run_fiber, 0);
  }
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    for (const unsigned thread : order) {
      threadIdx.x = thread;
      swapcontext(&block.scheduler, &block.fibers[thread]);
    }
    const auto finished = std::count(block.finished.begin(), block.finished.end(), true);
    if (finished == static_cast<std::ptrdiff_t>(threads)) {
      return;
    }
    if (finished != 0) {
      throw std::logic_error("a barrier was reached by part of the block only");
    }
  }
}

}  // namespace cuda_emulation

inline void __syncthreads() {
  cuda_emulation::Block& block = cuda_emulation::block;
  swapcontext(&block.fibers[threadIdx.x], &block.scheduler);
}

namespace cuda_emulation {

// visit(lane, value) for every lane of the thread's warp that is in the mask.
template <typename value_t, typename visit_t>
void exchange(unsigned mask, value_t value, visit_t visit) {
  static value_t slots[1024];
  slots[threadIdx.x] = value;
  __syncthreads();
  const unsigned first = threadIdx.x / warpSize * warpSize;
  for (unsigned lane = 0; lane < warpSize; ++lane) {
    if ((mask >> lane & 1) != 0) {
      visit(lane, slots[first + lane]);
    }
  }
  __syncthreads();
}

}  // namespace cuda_emulation

inline unsigned __match_any_sync(unsigned mask, int value) {
  unsigned peers = 0;
  cuda_emulation::exchange(mask, value, [&](unsigned lane, int other) {
    peers |= static_cast<unsigned>(other == value) << lane;
  });
  return peers;
}

inline int __reduce_max_sync(unsigned mask, int value) {
  cuda_emulation::exchange(mask, value,
                           [&](unsigned, int other) { value = std::max(value, other); });
  return value;
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  unsigned sum = 0;
  cuda_emulation::exchange(mask, value, [&](unsigned, unsigned other) { sum += other; });
  return sum;
}

inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }

template <typename value_t>
void atomicAdd(value_t* address, value_t value) {
  *address += value;
}
inline void atomicMax(int* address, int value) { *address = std::max(*address, value); }
inline void atomicMin(int* address, int value) { *address = std::min(*address, value); }
inline void atomicOr(int* address, int value) { *address |= value; }
