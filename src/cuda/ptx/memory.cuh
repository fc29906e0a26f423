// ld, st: global memory accesses with an order (PTX ISA, "Data Movement and Conversion
// Instructions: ld, st").
#pragma once

#include <cstdint>

namespace pando::ptx {

/// ld.acquire.gpu: later accesses of this thread see what the writer wrote before its release.
__device__ __forceinline__ uint64_t ld_acquire(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

/// st.release.gpu: who sees it by ld.acquire sees what this thread wrote and had seen before.
__device__ __forceinline__ void st_release(uint64_t* to, uint64_t value) {
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

/// st.global of 16 bytes where `wanted`: no branch, so that many follow each other.
__device__ __forceinline__ void st_if(bool wanted, void* to, uint4 value) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v4.b32 [%1], {%2, %3, %4, %5};}" ::"r"(
          static_cast<int>(wanted)),
      "l"(to), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
      : "memory");
}

}  // namespace pando::ptx
