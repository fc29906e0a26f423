// prefetch: brings memory nearer without reading it (PTX ISA, "Data Movement and Conversion
// Instructions: prefetch, prefetchu").
#pragma once

#include <cuda.h>

namespace pando::ptx {

/// prefetch.tensormap: a tensor map, before its first use.
__device__ __forceinline__ void prefetch_tensormap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// prefetch.global.L2: the line that holds `global`.
__device__ __forceinline__ void prefetch_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory");
}

}  // namespace pando::ptx
