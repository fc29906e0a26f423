// What a consumer warpgroup does: its query rows, and the tiles of a unit one after another.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/scores.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/shared.cuh"

namespace pando::cuda {

/// The query rows of a block from global memory to the warpgroup's place in shared memory, in the
/// 128-byte swizzle of the A operand of the first product.
template <class C>
__device__ __forceinline__ void load_rows(const AttendParams& params, int32_t block,
                                          int32_t kv_head, bool first_unit, int consumer,
                                          SharedPlan<C>& shared, RowState<C>& r) {
  const Start& start = shared.start;
  const int32_t unit_q_row = first_unit ? start.q_row : -1;
  const int32_t unit_row = params.by_group.quotient(start.unit.block * kBlockRows);
  const Row* const rows = section<Row>(params, start.rows_at);
  const int lane = threadIdx.x % 32;
  uint4 words[2][C::kHeadDim / 32];
  int32_t q_rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    r.top[i] = -INFINITY;
    r.sum[i] = 0;
    const int32_t place = threadIdx.x / 32 % 4 * 16 + lane / 4 + i * 8;
    const bool present = block * kBlockRows + place < start.packed_rows;
    const int32_t packed = present ? block * kBlockRows + place : 0;
    const int32_t index = params.by_group.quotient(packed);
    const Row* const row = &rows[index];
    r.visible_begin[i] = present ? __ldg(&row->visible_begin) : 0;
    r.visible_end[i] = present ? __ldg(&row->visible_end) : 0;
    const int32_t head = kv_head * params.group + packed - index * params.group;
    // The short way spares a read that the query's address would wait for.
    q_rows[i] = unit_q_row >= 0 && present ? unit_q_row + index - unit_row : __ldg(&row->q_row);
    const auto* const q = static_cast<const uint16_t*>(params.q) + q_rows[i] * params.q_row_stride +
                          head * params.q_head_stride;
#pragma unroll
    for (int k = 0; k < C::kHeadDim / 32; ++k) {
      words[i][k] = __ldg(reinterpret_cast<const uint4*>(q) + k * 4 + lane % 4);
    }
  }
#pragma unroll
  for (int d = 0; d < C::kHeadDim / 2; ++d) r.o[d] = 0;
  ptx::bar_sync(1 + consumer, 128);  // the scores of the unit before are done
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int32_t row = threadIdx.x / 32 % 4 * 16 + lane / 4 + i * 8;
    if (lane % 4 == 0) shared.q_rows[consumer][row] = q_rows[i];
#pragma unroll
    for (int k = 0; k < C::kHeadDim / 32; ++k) {
      const auto scaled = [&](uint32_t two) { return (two & params.q_keep) ^ params.q_flip; };
      uint4 w = words[i][k];
      w = make_uint4(scaled(w.x), scaled(w.y), scaled(w.z), scaled(w.w));
      const int32_t chunk = k % 2 * 4 + lane % 4;  // of 16 bytes
      uint8_t* const to = shared.q[consumer].rows[k / 2] + row * 128 + (chunk ^ (row & 7)) * 16;
      *reinterpret_cast<uint4*>(to) = w;
    }
  }
  ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
  ptx::bar_sync(1 + consumer, 128);
}

/// A consumer warp's places: the next slot to be waited for, and the next tile's description, which
/// is there when the tile's K is.
template <class C>
struct TileCursor {
  RingCursor<C::kSlots> slot;
  RingCursor<C::kInfos> info;

  __device__ explicit TileCursor(SharedPlan<C>& shared)
      : slot(shared.ring), info(shared.info_ring) {}

  /// Gives back the K in slot `k` and the description of its tile.
  __device__ __forceinline__ void give_back_keys(const RingCursor<C::kSlots>& k) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      k.release();
      info.release();
    }
    info.advance();
  }
  __device__ __forceinline__ static void give_back_values(const RingCursor<C::kSlots>& v) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) v.release();
  }
};

/// The warpgroups take turns at the tensor cores: while one multiplies, the other is at its
/// softmax. The first turn is warpgroup 0's.
struct Turns {
  static constexpr int kBarrier = 5;
  __device__ static void begin(int consumer) {
    if (consumer == 1) ptx::bar_arrive(kBarrier, 256);
  }
  __device__ static void take(int consumer) { ptx::bar_sync(kBarrier + consumer, 256); }
  __device__ static void pass(int consumer) { ptx::bar_arrive(kBarrier + 1 - consumer, 256); }
};

/// Tiles of a unit, of which this warpgroup takes N slots. The output of a tile accumulates while
/// the scores of the next become weights.
template <class C, int N>
__device__ __forceinline__ void attend_tiles(const AttendParams& params, RowState<C>& r,
                                             TileCursor<C>& cursor, SharedPlan<C>& shared,
                                             int32_t left, int consumer, int32_t tile_row) {
  constexpr bool kWhole = N == kTileTokens;
  const int32_t first = kWhole ? 0 : consumer * kHalfTokens;
  const int32_t named_barrier = 1 + consumer;
  const uint8_t* const q = shared.q[consumer].rows[0];
  if (left == 0) return;
  Scores<N> s;
  Weights<N> p;
  float alpha[2];
  cursor.slot.wait_full();
  mark(Stage::kKeys, true);
  ptx::wgmma_fence();
  start_scores<C, N>(s, q, shared.slots[cursor.slot.stage()], first);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  mark(Stage::kScores, true);
  Holes holes = mask_scores<C, N>(s, r, shared.info[cursor.info.stage()], first, tile_row);
  cursor.give_back_keys(cursor.slot);
  cursor.slot.advance();
  if (softmax<C, N>(params, s, r, alpha)) rescale<C>(r, alpha);
  pack_weights<C, N>(s, p);
  mark(Stage::kWeights, true);
#pragma unroll 1
  while (--left > 0) {
    const RingCursor<C::kSlots> v = cursor.slot;
    cursor.slot.advance();
    const RingCursor<C::kSlots> k = cursor.slot;
    cursor.slot.advance();
    v.wait_full();
    fill_holes<C, N>(shared.slots[v.stage()], first, holes, named_barrier);
    k.wait_full();
    if constexpr (kWhole) Turns::take(consumer);
    ptx::wgmma_fence();
    start_scores<C, N>(s, q, shared.slots[k.stage()], first);
    ptx::wgmma_commit_group();
    start_output<C, N>(r, p, shared.slots[v.stage()], first);
    ptx::wgmma_commit_group();
    if constexpr (kWhole) Turns::pass(consumer);
    ptx::wgmma_wait_group<1>();
    holes = mask_scores<C, N>(s, r, shared.info[cursor.info.stage()], first, tile_row);
    cursor.give_back_keys(k);
    const bool moved = softmax<C, N>(params, s, r, alpha);
    // The output of the last tile was to hide under this.
    ptx::wgmma_wait_group_after<0>(r.sum[0] + r.sum[1]);
    cursor.give_back_values(v);
    if (moved) rescale<C>(r, alpha);
    pack_weights<C, N>(s, p);
  }
  cursor.slot.wait_full();
  fill_holes<C, N>(shared.slots[cursor.slot.stage()], first, holes, named_barrier);
  ptx::wgmma_fence();
  start_output<C, N>(r, p, shared.slots[cursor.slot.stage()], first);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  cursor.give_back_values(cursor.slot);
  cursor.slot.advance();
}

}  // namespace pando::cuda
