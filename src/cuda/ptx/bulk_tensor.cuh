// Bulk copies of tensors with a cache policy, which CCCL's cuda/ptx does not offer (PTX ISA,
// "cp.async.bulk.tensor" and "createpolicy").
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/ptx/shared.cuh"

namespace pando::ptx {

/// createpolicy: L2 gives up these lines first for others; or as it would without a policy. The
/// latter is evict_unchanged: with evict_normal long reads took 6 % longer than with none.
__device__ __forceinline__ uint64_t evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t evict_unchanged() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// cp.async.bulk.tensor: a box of `map` to shared memory; says so to `barrier`.
__device__ __forceinline__ void cp_async_bulk_tensor(void* to, const CUtensorMap* map,
                                                     const int32_t (&coords)[5], uint64_t* barrier,
                                                     uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(shared_address(to)),
      "l"(map), "r"(coords[0]), "r"(coords[1]), "r"(coords[2]), "r"(coords[3]), "r"(coords[4]),
      "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

}  // namespace pando::ptx
