// When each consumer warpgroup came to which stage of a launch, by its multiprocessor's clock: in
// builds with PANDO_TIMELINE, which nobody should measure otherwise. In all others this is nothing.
#pragma once

#include <cstdint>

#include "cuda/kernels/attend/timeline.h"
#include "cuda/ptx/shared.cuh"

namespace pando::cuda {

#if defined(PANDO_TIMELINE)

constexpr int kTimedGroups = 2;  ///< the consumers: warpgroups 1 and 2
static __device__ int64_t g_timeline[kMostThreadBlocks][kTimedGroups][kStages];

/// Where a launch keeps them until its end, as what is marked must not wait for memory: the last
/// bytes that a thread block can have, which a SharedPlan leaves free.
using Times = int64_t[kTimedGroups][kStages];
__device__ __forceinline__ Times& timeline() {
  return *reinterpret_cast<Times*>(&ptx::dynamic_shared<uint8_t>() + kMostSharedBytes -
                                   sizeof(Times));
}

/// Keeps the last time that the warpgroup came by; `once`, the first.
__device__ __forceinline__ void mark(Stage stage, bool once = false) {
  const uint32_t group = threadIdx.x / 128;  // the converter of fp8 has no place
  if (threadIdx.x % 128 != 0 || group < 1 || group > kTimedGroups) return;
  const int64_t now = clock64();
  int64_t(&times)[kStages] = timeline()[group - 1];
  if (stage == Stage::kBegin) {
    for (int64_t& time : times) time = 0;
  }
  int64_t& time = times[static_cast<int>(stage)];
  if (!once || time == 0) time = now;
  if (stage == Stage::kEnd) {
    for (int i = 0; i < kStages; ++i) {
      g_timeline[blockIdx.x][group - 1][i] = times[i];
    }
  }
}

/// Keeps the first time that a warp of the producer came by, beside those of warpgroup 0.
__device__ __forceinline__ void mark_producer(Stage stage) {
  const int64_t now = clock64();
  int64_t& time = timeline()[0][static_cast<int>(stage)];
  if (threadIdx.x % 32 == 0 && time == 0) time = now;
}

#else

__device__ __forceinline__ void mark(Stage, bool = false) {}
__device__ __forceinline__ void mark_producer(Stage) {}

#endif

}  // namespace pando::cuda
