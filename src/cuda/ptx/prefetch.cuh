// prefetch, cp.async.bulk.prefetch: bring memory nearer without reading it (PTX ISA, "Data Movement
// and Conversion Instructions: prefetch, prefetchu" and "cp.async.bulk.prefetch").
#pragma once

#include <cuda.h>

#include <cstdint>

namespace pando::ptx {

/// prefetch.tensormap: a tensor map, before its first use.
__device__ __forceinline__ void prefetch_tensormap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// cp.async.bulk.prefetch.L2: memory at a multiple of 16 bytes, as many of them.
__device__ __forceinline__ void cp_async_bulk_prefetch_l2(const void* global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

}  // namespace pando::ptx
