// The producer warpgroup. Warps 0 and 2, the loaders, bring K and V by TMA; warp 1, the scout, runs
// ahead and describes the tiles to come; warp 3 fetches the start record, what will be wanted at
// the end, and the units after the first.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/scout.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/bulk_tensor.cuh"
#include "cuda/ptx/prefetch.cuh"

namespace pando::cuda {

template <class C, class Tiles>
__device__ void load_operand(const AttendParams& params, const CUtensorMap* big,
                             const CUtensorMap* small, const TileInfo& info, const LaneTile& t,
                             RingCursor<Tiles::kSlots>& cursor, SharedPlan<C>& shared, int lane,
                             uint64_t policy) {
  [[maybe_unused]] int32_t tokens;
  if constexpr (C::kParts > 1) {
    tokens = __reduce_add_sync(~0u, t.tokens(params.pages));
  }
  cursor.wait_empty();
  if constexpr (C::kParts == 1) tokens = info.tokens;
  if (lane == 0) cursor.expect(tokens * C::kHeadDim * C::kKvBytes);
  __syncwarp();
  uint8_t* const slot = Tiles::slot(shared, cursor.stage());
  const int32_t page_tokens = params.pages.page_tokens();
  // Each lane has a granule; those beyond the last load nothing.
  const auto load_box = [&](int32_t page, int half, int32_t into) {
    const int32_t in_page = t.position & (page_tokens - 1);
    const int32_t coords[5] = {0, in_page % kGranule, half, in_page / kGranule,
                               page * params.page_step + info.kv_head * params.head_step};
    ptx::cp_async_bulk_tensor(
        slot + (lane * C::kLoadHalves + half) * C::kLoadHalfBytes + into * C::kLoadRowBytes,
        t.is(LaneTile::kBig) ? big : small, coords, cursor.full_barrier(), policy);
  };
  if (t.is(LaneTile::kBig | LaneTile::kSmall)) {
    if (page_tokens >= kGranule) {
      load_box(t.page, 0, 0);
    } else {
#pragma unroll 1
      for (int32_t into = 0; into < t.tokens(params.pages); into += page_tokens) {
        const int32_t page = __ldg(&params.page_ids[t.page + into / page_tokens]);
#pragma unroll 1
        for (int half = 0; half < C::kLoadHalves; ++half) load_box(page, half, into);
      }
    }
  }
  cursor.advance();
}

/// Loads K of all tiles or V, `operand` 0 or 1, in the ring's order (see Config::kKeysAhead). Short
/// runs make many small copies, of which one warp alone could not issue enough.
template <class C, class Tiles>
__device__ void load_tiles(const AttendParams& params, const CUtensorMap* big,
                           const CUtensorMap* small, int operand, SharedPlan<C>& shared) {
  constexpr int kFirstKeys = 7;  // barrier: they are asked for
  const int lane = threadIdx.x % 32;
  RingCursor<Tiles::kSlots> cursor(Tiles::ring(shared));
  RingCursor<C::kInfos> infos(shared.info_ring);
  if (operand == 1) cursor.advance();
  if (operand == 1 && C::kKeysAhead) cursor.advance();
  const int32_t tiles = shared.start.tile_count;
  const uint64_t policy =
      shared.start.evict_first != 0 ? ptx::evict_first() : ptx::evict_unchanged();
  for (int32_t tile = 0; tile < tiles; ++tile) {
    if (tile >= Start::kTiles) infos.wait_full();
    const TileInfo& info = shared.info[infos.stage()];
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      constexpr int kPart = kGranules / C::kParts;
      const int granule = part * kPart + lane % kPart;
      LaneTile t{
          {info.position[granule], info.page[granule], lane < kPart ? info.rows[granule] : 0}};
      if (tile < Start::kTiles) t.look_up(params);
      // All thread blocks ask at once: first for what is wanted first.
      if (tile == 0 && part == 0 && operand == 1) ptx::bar_sync(kFirstKeys, 64);
      load_operand<C, Tiles>(params, big, small, info, t, cursor, shared, lane, policy);
      if (tile == 0 && part == 0 && operand == 0) ptx::bar_arrive(kFirstKeys, 64);
      mark_producer(Stage::kIssued);
      if (!C::kKeysAhead || operand == 1 || tile > 0) cursor.advance();
    }
    __syncwarp();
    if (lane == 0) infos.release();
    infos.advance();
  }
}

/// Brings an area into L2, each thread block its share of it, but at most kMost bytes; by one
/// thread.
__device__ __forceinline__ void prefetch_area(const void* area, int64_t bytes) {
  constexpr int64_t kLine = 128, kMost = 32 << 10;
  const auto begin = (reinterpret_cast<uintptr_t>(area) + 15) & ~uintptr_t{15};
  const auto end = (reinterpret_cast<uintptr_t>(area) + bytes) & ~uintptr_t{15};
  const int64_t lines = static_cast<uint32_t>(bytes / kLine) / gridDim.x + 1;
  const int64_t share = lines * kLine;
  const int64_t left = int64_t(end - begin) - share * blockIdx.x;
  if (left <= 0) return;
  ptx::cp_async_bulk_prefetch_l2(reinterpret_cast<const void*>(begin + share * blockIdx.x),
                                 static_cast<uint32_t>(min(left, min(share, kMost))));
}

/// Brings what all units are made of into L2 while the start record is on its way; by one thread.
__device__ __forceinline__ void prefetch_plan(const AttendParams& params) {
  prefetch_area(params.page_ids, params.page_ids_bytes);
  prefetch_area(params.schedule, params.schedule_bytes);
  prefetch_area(params.q, params.q_bytes);
}

/// Fetches the units after the first, and their rows, as far ahead as there is room; by one warp.
template <class C>
__device__ void fetch_units(const AttendParams& params, SharedPlan<C>& shared) {
  static_assert(sizeof(Unit) % sizeof(int4) == 0 && sizeof(Unit) <= 32 * sizeof(int4));
  const Start& start = shared.start;
  const int lane = threadIdx.x % 32;
  const Row* const rows = section<Row>(params, start.rows_at);
  RingCursor<C::kUnitsAhead> cursor(shared.ahead.ring);
#pragma unroll 1
  for (int32_t u = start.unit_begin + 1; u < start.unit_end; ++u) {
    const Unit& unit = section<Unit>(params, start.units_at)[u];
    const int32_t first = unit.block * kBlockRows;
    Row row[2 * kBlockRows / 32];
#pragma unroll
    for (int i = 0; i < 2 * kBlockRows / 32; ++i) {
      row[i] = rows[params.by_group.quotient(min(first + i * 32 + lane, start.packed_rows - 1))];
    }
    cursor.wait_empty();
    UnitAhead& to = shared.ahead.slots[cursor.stage()];
    if (lane < static_cast<int>(sizeof(Unit) / sizeof(int4))) {
      reinterpret_cast<int4*>(&to.unit)[lane] = reinterpret_cast<const int4*>(&unit)[lane];
    }
#pragma unroll
    for (int i = 0; i < 2 * kBlockRows / 32; ++i) {
      to.rows[i * 32 / kBlockRows][(i * 32 + lane) % kBlockRows] = row[i];
    }
    __syncwarp();
    if (lane == 0) cursor.fill();
    cursor.advance();
  }
}

}  // namespace pando::cuda
