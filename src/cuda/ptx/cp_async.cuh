// cp.async: copies from global to shared memory that a thread need not wait for at once (PTX ISA,
// "Data Movement and Conversion Instructions: cp.async", "cp.async.wait_all",
// "cp.async.mbarrier.arrive").
#pragma once

#include <cstdint>

#include "cuda/ptx/shared.cuh"

namespace pando::ptx {

/// cp.async of 16 bytes. They are written as by a store of this thread.
__device__ __forceinline__ void cp_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}

/// cp.async.mbarrier.arrive: arrives at `barrier` when this thread's copies so far are complete.
/// The barrier counts it as it does other arrivals.
__device__ __forceinline__ void cp_async_mbarrier_arrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

/// cp.async.wait_all: waits until this thread's copies are complete.
__device__ __forceinline__ void cp_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace pando::ptx
