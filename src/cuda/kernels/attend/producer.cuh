// The producer warpgroup: one warp loads K and V by TMA, three fetch the next unit's query rows.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/cp_async.cuh"

namespace pando::cuda {

/// One lane's part of a tile: the granule of 8 slots that it describes, and the box it loads.
struct LaneTile {
  static constexpr uint32_t kBig = 1u << 24;    ///< loads a big box that starts here
  static constexpr uint32_t kSmall = 1u << 25;  ///< loads a box of 8 tokens
  static constexpr uint32_t kFull = 1u << 26;   ///< every row sees every token
  static constexpr uint32_t kPlain = 1u << 27;  ///< the run's rows see every token

  int32_t page;
  int32_t position;
  int32_t kv_head;
  uint32_t rows;  ///< as TileInfo::rows, and the flags above

  __device__ bool is(uint32_t flag) const { return (rows & flag) != 0; }
  __device__ uint32_t valid() const { return rows >> 16 & 15; }
};

/// What the loading warp needs of a unit.
struct UnitPart {
  int32_t kv_head, slot_begin, slot_end, run_begin, run_end;

  __device__ explicit UnitPart(const Unit& unit)
      : kv_head(__ldg(&unit.kv_head)),
        slot_begin(__ldg(&unit.slot_begin)),
        slot_end(__ldg(&unit.slot_end)),
        run_begin(__ldg(&unit.run_begin)),
        run_end(__ldg(&unit.run_end)) {}
};

/// Walks the slots of a unit. A window of 32 runs lies in the lanes' registers.
template <class C>
struct ListWalker {
  int4 run;      ///< of this lane: slot_begin, token_begin, token_end, page_offset
  int32_t rows;  ///< of this lane's run
  int32_t window, run_end;

  __device__ void load_window(const AttendParams& params, int32_t first, int lane) {
    window = first;
    const Run* from = &params.runs[min(first + lane, run_end - 1)];
    run = __ldg(reinterpret_cast<const int4*>(from));
    rows = __ldg(&from->rows);
    if (first + lane >= run_end) run.x = 0x7fffffff;
  }

  /// Describes granule `lane` (0..15) of the tile at `begin`.
  __device__ LaneTile describe(const AttendParams& params, int32_t begin, int32_t end, int lane) {
    if (__shfl_sync(~0u, run.x, 31) < min(end, begin + C::kTileTokens)) {
      const uint32_t started = __ballot_sync(~0u, run.x <= begin);
      load_window(params, window + __popc(started) - 1, lane);
    }
    const int32_t granule = lane % 16;
    const int32_t slot = begin + granule * 8;
    int32_t at = 0;  // last lane whose run starts at or before the slot
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      if (__shfl_sync(~0u, run.x, at + step) <= slot) at += step;
    }
    const int32_t slot_begin = __shfl_sync(~0u, run.x, at);
    const int32_t token_begin = __shfl_sync(~0u, run.y, at);
    const int32_t token_end = __shfl_sync(~0u, run.z, at);
    const int32_t page_offset = __shfl_sync(~0u, run.w, at);
    const int32_t run_rows = __shfl_sync(~0u, rows, at);

    LaneTile t;
    t.position = token_begin + slot - slot_begin;
    int32_t valid = slot < end ? min(max(token_end - t.position, 0), 8) : 0;
    t.rows = (run_rows & 0xffff) | valid << 16;
    if (valid == 8)
      t.rows |= (run_rows & Run::kFull ? LaneTile::kFull : 0) |
                (run_rows & Run::kPlain ? LaneTile::kPlain : 0);
    const int32_t box = 1 << params.box_shift;
    // The big box that would hold this granule: whole inside run, tile and unit?
    const int32_t into = t.position & (box - 1);
    const int32_t head = granule * 8 - into;
    const bool inside = box >= 8 && head >= 0 && head + box <= C::kTileTokens &&
                        t.position - into >= token_begin && t.position - into + box <= token_end &&
                        begin + head + box <= end;
    t.page = 0;
    if (valid > 0 && lane < 16 && (!inside || into == 0)) {
      t.rows |= inside ? LaneTile::kBig : LaneTile::kSmall;
      t.page = __ldg(&params.page_ids[page_offset + (t.position >> params.page_shift)]);
    }
    return t;
  }
};

template <class C>
__device__ void load_operand(const AttendParams& params, const CUtensorMap* big,
                             const CUtensorMap* small, const LaneTile& t, uint32_t bytes,
                             RingCursor<C::kSlots>& cursor, SharedPlan<C>& shared, int lane) {
  if (lane == 0) cursor.expect(bytes);
  __syncwarp();
  uint8_t* slot = shared.slots[cursor.stage()] + lane * 1024;
  const int32_t in_page = t.position & ((1 << params.page_shift) - 1);
  if ((t.is(LaneTile::kBig | LaneTile::kSmall))) {
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      const int32_t coords[5] = {0, in_page, half, t.kv_head, t.page};
      ::cuda::ptx::cp_async_bulk_tensor(
          ::cuda::ptx::space_cluster, ::cuda::ptx::space_global, slot + half * C::kHalfBytes,
          t.is(LaneTile::kBig) ? big : small, coords, cursor.full_barrier());
    }
  }
  cursor.advance();
}

template <class C>
__device__ void produce(const AttendParams& params, const TensorMaps& maps, SharedPlan<C>& shared) {
  const int lane = threadIdx.x % 32;
  RingCursor<C::kSlots> cursor(shared.ring);
  ListWalker<C> walker;
  int32_t u = params.cta_begin[blockIdx.x];
  const int32_t last = params.cta_begin[blockIdx.x + 1];
  if (u == last) return;
  UnitPart unit(params.units[u]);
  int32_t begin = unit.slot_begin;
  walker.run_end = unit.run_end;
  walker.load_window(params, unit.run_begin, lane);

  // Describes the tile at `begin` and moves on; false when there is none.
  const auto describe = [&](LaneTile& t) {
    if (u == last) return false;
    t = walker.describe(params, begin, unit.slot_end, lane);
    t.kv_head = unit.kv_head;
    begin += C::kTileTokens;
    if (begin >= unit.slot_end && ++u < last) {
      unit = UnitPart(params.units[u]);
      begin = unit.slot_begin;
      walker.run_end = unit.run_end;
      walker.load_window(params, unit.run_begin, lane);
    }
    return true;
  };
  const auto issue = [&](const LaneTile& t) {
    const uint32_t bigs = __popc(__ballot_sync(~0u, t.is(LaneTile::kBig)));
    const uint32_t smalls = __popc(__ballot_sync(~0u, t.is(LaneTile::kSmall)));
    const uint32_t bytes = ((bigs << params.box_shift) + smalls * 8) * C::kHeadDim * 2;
    const bool full = __all_sync(~0u, t.is(LaneTile::kFull));
    const uint32_t first_rows = __shfl_sync(~0u, t.rows, 0);
    const bool plain =
        __all_sync(~0u, t.is(LaneTile::kPlain) && (t.rows & 0xffff) == (first_rows & 0xffff));
    const bool holes = __any_sync(~0u, t.valid() < 8);
    cursor.wait_empty();
    TileInfo<C>& info = shared.info[cursor.stage()];
    if (lane < 16) {
      info.position[lane] = t.position;
      info.rows[lane] = t.rows & 0xffffff;
    }
    if (lane == 0) {
      info.masked = full ? 0 : plain ? 1 : 2;
      info.holes = holes;
    }
    __syncwarp();
    load_operand<C>(params, &maps.k_big, &maps.k_small, t, bytes, cursor, shared, lane);
    cursor.wait_empty();
    load_operand<C>(params, &maps.v_big, &maps.v_small, t, bytes, cursor, shared, lane);
  };
  // Two descriptions in turn: the page ids of one travel while the other is issued.
  LaneTile a, b;
  bool more = describe(a);
  while (more) {
    const bool more_b = describe(b);
    issue(a);
    if (!more_b) break;
    more = describe(a);
    issue(b);
  }
}

/// Warps 1-3 of the first warpgroup: the next unit's description and query rows.
template <class C>
__device__ void fetch_queries(const AttendParams& params, SharedPlan<C>& shared) {
  constexpr int kChunks = C::kHeadDim / 8;
  constexpr int kFetchers = 96;
  constexpr int kFetchersBarrier = 6;
  const int thread = threadIdx.x - 32;
  RingCursor<1> cursor(shared.q_ring);
  const int32_t last = params.cta_begin[blockIdx.x + 1];
  for (int32_t u = params.cta_begin[blockIdx.x]; u < last; ++u) {
    const int4* from_unit = reinterpret_cast<const int4*>(&params.units[u]);
    const int4 unit = __ldg(from_unit);
    const int32_t packed_begin = unit.x * 64;
    const int32_t rows = min(unit.y * 64, params.packed_rows - packed_begin);
    const int which = u & 1;
    cursor.wait_empty();
    if (thread < int(sizeof(Unit) / 16))
      reinterpret_cast<int4*>(&shared.unit[which])[thread] = __ldg(&from_unit[thread]);
    for (int32_t r = thread; r < C::kRows; r += kFetchers) {
      int2 visible = make_int2(0, 0);
      if (r < rows) {
        const Row row = params.rows[(packed_begin + r) / params.group];
        visible = make_int2(row.visible_begin, row.visible_end);
        shared.q_row[r] = row.q_row;
      }
      shared.visible[r] = visible;
    }
    ptx::bar_sync(kFetchersBarrier, kFetchers);
    for (int32_t i = thread; i < rows * kChunks; i += kFetchers) {
      const int32_t r = i / kChunks;
      const int32_t chunk = i % kChunks;
      const int32_t q_head = unit.z * params.group + (packed_begin + r) % params.group;
      const auto* from = static_cast<const uint16_t*>(params.q) +
                         shared.q_row[r] * params.q_row_stride + q_head * params.q_head_stride +
                         chunk * 8;
      ptx::cp_async_16(shared_address(shared.q) + (r * kChunks + (chunk ^ (r & 7))) * 16, from);
    }
    ptx::cp_async_wait_all();
    ::cuda::ptx::mbarrier_arrive(cursor.full_barrier());
    cursor.advance();
  }
}

}  // namespace pando::cuda
