// cp.async: copies from global to shared memory without registers (PTX ISA, "Data Movement and
// Conversion Instructions: Non-bulk copy").
#pragma once

#include <cuda.h>

#include <cstdint>

namespace pando::ptx {

/// cp.async.cg: 16 bytes, past L1.
__device__ __forceinline__ void cp_async_16(uint32_t shared_address, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address), "l"(global)
               : "memory");
}

/// cp.async.wait_all: waits for all copies of this thread.
__device__ __forceinline__ void cp_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// prefetch.tensormap: brings a tensor map near before its first use.
__device__ __forceinline__ void prefetch_tensormap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace pando::ptx
