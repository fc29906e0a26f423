// Matrix products of a warpgroup's tile.
#pragma once

#include <cstdint>

#include "cuda/ptx/wgmma.cuh"

namespace pando::cuda {

/// d += a * b, 64 x N x 16, asynchronous. `a` in registers (uint32_t[4]) or a matrix descriptor,
/// `b` a matrix descriptor; BTransposed: b's columns are contiguous.
template <int N, bool BTransposed, class E, class A>
__device__ __forceinline__ void mma(float (&d)[N / 2], const A& a, uint64_t b, bool accumulate) {
  if constexpr (N == 32) {
    ptx::wgmma_m64n32k16<BTransposed>(d, a, b, accumulate, E{});
  } else if constexpr (N == 64) {
    ptx::wgmma_m64n64k16<BTransposed>(d, a, b, accumulate, E{});
  } else if constexpr (N == 256) {
    ptx::wgmma_m64n256k16<BTransposed>(d, a, b, accumulate, E{});
  } else {
    ptx::wgmma_m64n128k16<BTransposed>(d, a, b, accumulate, E{});
  }
}

}  // namespace pando::cuda
