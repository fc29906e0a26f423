// The shape of the attend kernel and its shared memory.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/kernels/attend/params.h"
#include "cuda/pipeline/ring.cuh"

namespace pando::cuda {

/// What one instance of the kernel is made for.
template <class Element_, int HeadDim_>
struct Config {
  using Element = Element_;
  static constexpr int kHeadDim = HeadDim_;
  static constexpr int kHalves = kHeadDim / 64;
  static constexpr int kTileTokens = 128;  ///< slots that one turn of the ring holds
  static constexpr int kSlots = kHeadDim == 128 ? 5 : 10;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kHalfBytes = kTileTokens * 128;
  static constexpr int kSlotBytes = kHalfBytes * kHalves;
  static constexpr int kRows = 128;
};

/// What the consumers must know of a tile besides its bytes.
template <class C>
struct TileInfo {
  int32_t position[C::kTileTokens / 8];  ///< of each granule's first token in its sequence
  uint32_t rows[C::kTileTokens / 8];     ///< row_begin | row_end << 8 | valid tokens << 16
  int32_t masked;  ///< 0: every row sees every token; 1: rows of one run see all; 2: look closer
  int32_t holes;   ///< some slot holds no token
};

/// The kernel's shared memory.
template <class C>
struct SharedPlan {
  alignas(1024) uint8_t slots[C::kSlots][C::kSlotBytes];
  alignas(16) uint8_t q[C::kRows * C::kHeadDim * 2];  ///< 16-byte chunks swizzled by row
  float exchange[64 * (C::kHeadDim + 2)];
  TileInfo<C> info[C::kSlots];
  Unit unit[2];
  int2 visible[C::kRows];
  int32_t q_row[C::kRows];
  RingBarriers<C::kSlots> ring;
  RingBarriers<1> q_ring;
};

/// K and V as TMA sees them: boxes of up to 64 tokens of a page, and of 8.
struct TensorMaps {
  CUtensorMap k_big, v_big, k_small, v_small;
};

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
}  // namespace pando::cuda
