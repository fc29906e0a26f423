// The producer warpgroup. Warps 0 and 2, the loaders, bring K and V by TMA; warp 1, the scout, runs
// ahead and describes the tiles to come; warp 3 fetches what will be wanted at units' starts and
// ends.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/scout.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/prefetch.cuh"

namespace pando::cuda {

template <class C>
__device__ void load_operand(const AttendParams& params, const CUtensorMap* big,
                             const CUtensorMap* small, const TileInfo& info, const LaneTile& t,
                             RingCursor<C::kSlots>& cursor, SharedPlan<C>& shared, int lane) {
  cursor.wait_empty();
  if (lane == 0) cursor.expect(info.tokens * C::kHeadDim * 2);
  __syncwarp();
  uint8_t* slot = shared.slots[cursor.stage()] + lane * 1024;
  const int32_t page_tokens = params.pages.page_tokens();
  const auto load_box = [&](int32_t page, int32_t into) {
    const int32_t in_page = t.position & (page_tokens - 1);
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      const int32_t coords[5] = {0, in_page, half, info.kv_head, page};
      ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_cluster, ::cuda::ptx::space_global,
                                        slot + half * C::kHalfBytes + into * 128,
                                        t.is(LaneTile::kBig) ? big : small, coords,
                                        cursor.full_barrier());
    }
  };
  if (t.is(LaneTile::kBig | LaneTile::kSmall)) {
    if (page_tokens >= kGranule) {
      load_box(t.page, 0);
    } else {
      for (int32_t into = 0; into < t.tokens(params.pages); into += page_tokens) {
        load_box(__ldg(&params.page_ids[t.page + into / page_tokens]), into);
      }
    }
  }
  cursor.advance();
}

/// Loads K of all tiles or V, `operand` 0 or 1, which take every other slot of the ring. Short runs
/// make many small copies, of which one warp alone could not issue enough.
template <class C>
__device__ void load_tiles(const AttendParams& params, const CUtensorMap* big,
                           const CUtensorMap* small, int operand, SharedPlan<C>& shared) {
  const int lane = threadIdx.x % 32;
  RingCursor<C::kSlots> cursor(shared.ring);
  RingCursor<C::kInfos> infos(shared.info_ring);
  if (operand == 1) cursor.advance();
  const int32_t tiles = shared.start.tile_count;
  for (int32_t tile = 0; tile < tiles; ++tile) {
    if (tile > 0) infos.wait_full();
    const TileInfo& info = shared.info[infos.stage()];
    LaneTile t{{info.position[lane % kGranules], info.page[lane % kGranules],
                lane < kGranules ? info.rows[lane % kGranules] : 0}};
    if (tile == 0) t.look_up(params);
    load_operand<C>(params, big, small, info, t, cursor, shared, lane);
    mark_producer(Stage::kIssued);
    cursor.advance();
    __syncwarp();
    if (lane == 0) infos.release();
    infos.advance();
  }
}

/// Brings the first lines of an area into L2, each thread block a few of them; by one warp.
__device__ __forceinline__ void prefetch_area(const void* area, int64_t bytes) {
  constexpr int kLine = 128;
  const int64_t offset = (blockIdx.x + int64_t{gridDim.x} * (threadIdx.x % 32)) * kLine;
  if (offset < bytes) ptx::prefetch_l2(static_cast<const uint8_t*>(area) + offset);
}

/// Brings what all units are made of into L2 while the first reads are on their way; by one warp.
__device__ __forceinline__ void prefetch_plan(const AttendParams& params) {
  prefetch_area(params.page_ids, params.page_ids_bytes);
  prefetch_area(params.schedule, params.schedule_bytes);
  prefetch_area(params.q, params.q_bytes);
}

/// Brings the rows and queries of the next units into L2; by one warp.
template <class C>
__device__ __forceinline__ void prefetch_queries(const AttendParams& params, const Start& start) {
  const int lane = threadIdx.x % 32;
  const Unit* const units = section<Unit>(params, start.units_at);
  const Row* const rows = section<Row>(params, start.rows_at);
  for (int32_t u = start.unit_begin + 1; u < start.unit_end; ++u) {
    const int4 unit = __ldg(reinterpret_cast<const int4*>(&units[u]));
    const int32_t begin = unit.x * kBlockRows;
    const int32_t end = min(begin + unit.y * kBlockRows, start.packed_rows);
    for (int32_t packed = begin + lane; packed < end; packed += 32) {
      const int32_t row = params.by_group.quotient(packed);
      const int64_t q_row = __ldg(&rows[row].q_row);
      const int32_t head = unit.z * params.group + packed - row * params.group;
      const auto* q = static_cast<const uint16_t*>(params.q) + q_row * params.q_row_stride +
                      head * params.q_head_stride;
#pragma unroll
      for (int half = 0; half < C::kHalves; ++half) ptx::prefetch_l2(q + half * 64);
    }
  }
}

}  // namespace pando::cuda
