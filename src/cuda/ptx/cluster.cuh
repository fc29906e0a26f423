// Clusters of thread blocks: their barrier, and the shared memory of the others (PTX ISA, "Parallel
// Synchronization Instructions: barrier.cluster, mbarrier.arrive", "Data Movement and Conversion
// Instructions: mapa, st.async").
#pragma once

#include <cstdint>

#include "cuda/ptx/shared.cuh"

namespace pando::ptx {

/// barrier.cluster.arrive: comes to the barrier of the cluster without waiting; by whole warps.
/// What others are to find, such as mbarriers, needs a fence of its own.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

/// barrier.cluster.wait: waits until all threads of the cluster have come; by whole warps.
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// mapa: what `mine` is in the shared memory of thread block `rank` of the cluster, as an address
/// of the cluster.
__device__ __forceinline__ uint32_t in_thread_block(const void* mine, uint32_t rank) {
  uint32_t theirs;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs) : "r"(shared_address(mine)), "r"(rank));
  return theirs;
}

/// mbarrier.arrive at a barrier of the cluster. What this thread wrote to memory may come later.
__device__ __forceinline__ void mbarrier_arrive_in(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// st.async: 16 bytes to an address of the cluster; they complete a barrier of the same thread
/// block by as much when they are there.
__device__ __forceinline__ void st_async(uint32_t to, float4 value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
      : "memory");
}

}  // namespace pando::ptx
