// barrier: named barriers of a thread block (PTX ISA, "Parallel Synchronization Instructions").
#pragma once

#include <cstdint>

namespace pando::ptx {

/// bar.sync: waits until `threads` threads, this one included, have come to barrier `name`.
__device__ __forceinline__ void bar_sync(int32_t name, int32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

/// bar.arrive: comes to barrier `name` without waiting.
__device__ __forceinline__ void bar_arrive(int32_t name, int32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

}  // namespace pando::ptx
