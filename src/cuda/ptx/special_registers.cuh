// Special registers (PTX ISA, "Special Registers").
#pragma once

#include <cstdint>

namespace pando::ptx {

/// %tid.x, read anew at each call: nothing that is worked out from it is kept for the next one.
__device__ __forceinline__ uint32_t tid_x() {
  uint32_t x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

/// A copy of `value` of which the compiler knows nothing: it is kept, not worked out anew.
__device__ __forceinline__ int32_t opaque(int32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

/// %smid: the multiprocessor on which the thread block runs.
__device__ __forceinline__ uint32_t smid() {
  uint32_t multiprocessor;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
  return multiprocessor;
}

}  // namespace pando::ptx
