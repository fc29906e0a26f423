// The producer warpgroup. Warps 0 and 2, the loaders, bring K and V; warp 1, the scout, runs
// ahead and describes the tiles to come; warp 3 fetches the start record, what will be wanted at
// the end, and the units after the first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cuda/ptx>
#include <type_traits>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/scout.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/bulk_tensor.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/prefetch.cuh"

namespace pando::cuda {

/// Where the boxes of K come from, `operand` 0, or those of V.
struct BoxSource {
  const CUtensorMap *big, *small;
  uint64_t policy;

  __device__ __forceinline__ BoxSource(const TensorMaps& maps, int operand, const Start& start)
      : big(operand == 0 ? &maps.k_big : &maps.v_big),
        small(operand == 0 ? &maps.k_small : &maps.v_small),
        policy(start.evict_first != 0 ? ptx::evict_first() : ptx::evict_unchanged()) {}

  /// Asks for the box of a tile that begins with this granule, on its page.
  template <class C>
  __device__ __forceinline__ void copy(const AttendParams& params, uint8_t* slot, const LaneTile& t,
                                       int granule, int32_t kv_head, uint64_t* barrier) const {
    const int32_t in_page = t.position & (params.pages.page_tokens() - 1);
    const int32_t coords[5] = {0, in_page % kGranule, 0, in_page / kGranule,
                               t.page * params.page_step + kv_head * params.head_step};
    ptx::cp_async_bulk_tensor(slot + granule * C::kLoadHalves * C::kLoadHalfBytes,
                              t.is(LaneTile::kBig) ? big : small, coords, barrier, policy);
  }
};

/// Copies by TMA, of boxes that lie on one page: a granule a lane.
template <class C, class Tiles>
class BoxCopies {
 public:
  __device__ BoxCopies(const AttendParams& params, const TensorMaps& maps, int operand,
                       SharedPlan<C>& shared)
      : params_(params), shared_(shared), from_(maps, operand, shared.start) {}

  __device__ __forceinline__ void load(const TileInfo& info, const LaneTile& t, int,
                                       const RingCursor<Tiles::kSlots>& cursor) {
    const int lane = threadIdx.x % 32;
    [[maybe_unused]] int32_t tokens;
    if constexpr (C::kParts > 1) {
      tokens = __reduce_add_sync(~0u, t.tokens(params_.pages));
    }
    cursor.wait_empty();
    if constexpr (C::kParts == 1) tokens = info.tokens;
    if (lane == 0) cursor.expect(tokens * C::kHeadDim * C::kKvBytes);
    __syncwarp();
    if (!t.is(LaneTile::kBig | LaneTile::kSmall)) return;
    from_.template copy<C>(params_, Tiles::slot(shared_, cursor.stage()), t, lane, info.kv_head,
                           cursor.full_barrier());
  }
  __device__ void finish() {}

 private:
  const AttendParams& params_;
  SharedPlan<C>& shared_;
  BoxSource from_;
};

/// Copies of single tokens, 16 bytes a lane, where pages are smaller than a granule: TMA would take
/// two boxes for each page, and one warp cannot issue so many. Nor can one copy as much as memory
/// brings: the last 32 tokens of each tile are left to a helper. Who multiplies what they bring
/// needs a fence: see fence_copies.
template <class C, class Tiles, bool kHelper>
class TokenCopies {
 public:
  __device__ TokenCopies(const AttendParams& params, const TensorMaps&, int operand,
                         SharedPlan<C>& shared)
      : params_(params), shared_(shared), from_(operand == 0 ? params.k : params.v) {}

  /// Part `part` of a tile.
  __device__ __forceinline__ void load(const TileInfo& info, const LaneTile& t, int part,
                                       const RingCursor<Tiles::kSlots>& cursor) {
    constexpr int kTimes = C::kSlotTokens / 32;
    // In stretches of 32 tokens: what a loader has of a tile; the helper has the rest.
    constexpr int kOwn = kTileTokens / 32 - 1;
    constexpr int kMost = kHelper ? 1 : kTimes < kOwn ? kTimes : kOwn;
    const int own_end = min(kOwn - part * kTimes, kTimes);
    const int begin = kHelper ? own_end : 0, end = kHelper ? kTimes : own_end;
    int32_t pages[kMost];  // of one token in 32 each
#pragma unroll
    for (int i = 0; i < kMost; ++i) pages[i] = page_of(t, (begin + i) * kAtHand);
    cursor.wait_empty();
    uint8_t* to = Tiles::slot(shared_, cursor.stage()) + begin * kAtHand * kGranuleBytes;
#pragma unroll 1
    for (int granule = begin * kAtHand; granule < end * kAtHand; granule += kAtHand) {
      const uint64_t row = row_of(t, granule, info.kv_head, pages[0]);
#pragma unroll
      for (int i = 1; i < kMost; ++i) pages[i - 1] = pages[i];
#pragma unroll 1
      for (int first = 0; first < 32; first += kTokens) {
        copy_tokens(row, first, to);
      }
      to += kAtHand * kGranuleBytes;
    }
    cursor.fill_when_copied();
  }
  __device__ void finish() { ptx::cp_async_wait_all(); }

 private:
  static constexpr int kAtHand = 32 / kGranule;  ///< granules whose tokens a warp's lanes have
  static constexpr int kChunks = C::kHeadDim * C::kKvBytes / 16;  ///< of a token
  static constexpr int kAtOnce = 32 / kChunks;                    ///< tokens
  /// Copied at once, as registers allow.
  static constexpr int kTokens = std::min(16, (C::kFp8 ? 2 : 4) * kAtOnce);
  static constexpr int kHalfChunks = C::kLoadRowBytes / 16;
  static constexpr int kGranuleBytes = C::kLoadHalves * C::kLoadHalfBytes;
  static constexpr bool kSwizzled = is_swizzled(C::kLoadRowBytes);

  /// The granule of this lane's token, of those from `first` on.
  __device__ __forceinline__ static LaneTile granule_of(const LaneTile& t, int first) {
    const int from = first + threadIdx.x % 32 / kGranule;
    return {{__shfl_sync(~0u, t.position, from), __shfl_sync(~0u, t.page, from),
             __shfl_sync(~0u, t.rows, from)}};
  }
  /// The page of this lane's token, or -1 where there is none.
  __device__ __forceinline__ int32_t page_of(const LaneTile& t, int first) const {
    const LaneTile mine = granule_of(t, first);
    const int32_t in_granule = threadIdx.x % kGranule;
    const bool held = (mine.slots() >> in_granule & 1) != 0;
    const int32_t shift = params_.pages.page_shift;
    const int32_t at =
        mine.page + ((mine.position + in_granule) >> shift) - (mine.position >> shift);
    const int32_t page = __ldg(&params_.page_ids[held ? at : 0]);
    return held ? page : -1;
  }
  /// Where this lane's token lies. Where there is none, what any other is: slots without a token
  /// may hold anything.
  __device__ __forceinline__ uint64_t row_of(const LaneTile& t, int first, int32_t kv_head,
                                             int32_t page) const {
    const int32_t position = granule_of(t, first).position + threadIdx.x % kGranule;
    const int32_t in_page = position & (params_.pages.page_tokens() - 1);
    const int64_t element =
        page * params_.page_stride + kv_head * params_.head_stride + in_page * params_.token_stride;
    return reinterpret_cast<uint64_t>(from_ + (page < 0 ? 0 : element * C::kKvBytes));
  }
  /// Copies as many tokens, which the lanes from `first` on have, to where TMA would write them.
  __device__ __forceinline__ static void copy_tokens(uint64_t row, int first, uint8_t* to) {
    const int lane = threadIdx.x % 32;
    const int chunk = lane % kChunks, lane_token = lane / kChunks;
    const int lane_place = chunk / kHalfChunks * C::kLoadHalfBytes + lane_token * C::kLoadRowBytes +
                           (chunk % kHalfChunks ^ (kSwizzled ? lane_token : 0)) * 16;
    to += first / kGranule * kGranuleBytes + first % kGranule * C::kLoadRowBytes;
    constexpr int kTurns = kTokens / kAtOnce;
    // All lookups first, then all copies: none waits for another.
    uint64_t from[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      from[turn] = __shfl_sync(~0u, row, first + turn * kAtOnce + lane_token);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int token = turn * kAtOnce;  // none of its bits is one of the lane's token
      const int place = token % kGranule * C::kLoadRowBytes +
                        (lane_place ^ (kSwizzled ? (first + token) % kGranule * 16 : 0));
      ptx::cp_async(to + token / kGranule * kGranuleBytes + place,
                    reinterpret_cast<const std::byte*>(from[turn]) + chunk * 16);
    }
  }

  const AttendParams& params_;
  SharedPlan<C>& shared_;
  const std::byte* from_;
};

/// The first tile, which everything waits for. Several warps of the producer ask for boxes of it,
/// as one takes 100 cycles for each; what they must know they read themselves, beside the start
/// record.
template <class C>
struct FirstTile {
  LaneTile tile;  ///< granule `lane` % 16

  __device__ __forceinline__ void read(const AttendParams& params) {
    const TileInfo& info = start_record(params).tiles[0];
    const int granule = threadIdx.x % kGranules;
    tile = {
        {__ldg(&info.position[granule]), __ldg(&info.page[granule]), __ldg(&info.rows[granule])}};
  }
  /// K, and then V: where it is the `only` tile, all warps ask for a quarter of each. Else warps 0
  /// and 3 ask for half of K, and warp 2 for V, which comes beside the next K: with more warps at
  /// it, V would come before that, and seed-32x16 took 4 % longer.
  __device__ __forceinline__ void ask(const AttendParams& params, const TensorMaps& maps, bool only,
                                      SharedPlan<C>& shared) const {
    constexpr int kAsked = 7;  // barrier
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (shared.start.tile_count == 0 || (!only && warp == 1)) return;
    const TileInfo& info = shared.info[0];
    const bool any = lane < kGranules && tile.is(LaneTile::kBig | LaneTile::kSmall);
#pragma unroll
    for (int operand = 0; operand < 2; ++operand) {
      const RingCursor<C::kSlots> slot(shared.ring, operand * C::kFirstValues);
      if (operand == 1) {
        if (!only && warp != 2) {
          ptx::bar_arrive(kAsked, 96);
          return;
        }
        ptx::bar_sync(kAsked, only ? 128 : 96);
      }
      if (warp == operand * 2 && lane == 0) slot.expect(info.tokens * C::kHeadDim * C::kKvBytes);
      const int asker = only ? lane / 4 : operand == 1 ? 2 : lane < 8 ? 0 : 3;
      if (any && asker == warp) {
        BoxSource(maps, operand, shared.start)
            .template copy<C>(params, shared.slots[slot.stage()], tile, lane, info.kv_head,
                              slot.full_barrier());
      }
      __syncwarp();
      if (operand == 0) mark_producer(Stage::kIssued);
    }
  }
};

/// Each lane's granule of part `part` of a tile; the lanes beyond them have none.
template <class C>
__device__ __forceinline__ LaneTile lane_tile(const TileInfo& info, int part) {
  constexpr int kPart = kGranules / C::kParts;
  const int lane = threadIdx.x % 32;
  const int granule = part * kPart + lane % kPart;
  return {{info.position[granule], info.page[granule], lane < kPart ? info.rows[granule] : 0}};
}

/// Loads K of all tiles or V, `operand` 0 or 1, in the ring's order (see Config::kKeysAhead). Short
/// runs make many small copies, of which one warp alone could not issue enough.
template <class C, class Tiles>
__device__ __forceinline__ void load_tiles(const AttendParams& params, const TensorMaps& maps,
                                           int operand, SharedPlan<C>& shared) {
  constexpr int kFirstKeys = 7;  // barrier: they are asked for
  const int lane = threadIdx.x % 32;
  RingCursor<Tiles::kSlots> cursor(Tiles::ring(shared));
  RingCursor<C::kInfos> infos(shared.info_ring);
  using Copies = std::conditional_t<C::kByToken, TokenCopies<C, Tiles, false>, BoxCopies<C, Tiles>>;
  Copies copies(params, maps, operand, shared);
  if (operand == 1) cursor.advance();
  if (operand == 1 && C::kKeysAhead) cursor.advance();
  const int32_t tiles = shared.start.tile_count;
  constexpr int kFirst = C::kAsksFirst ? 1 : 0;  // FirstTile has asked for that before
  if (kFirst > 0 && tiles > 0) {
    if (lane == 0) infos.release();
    infos.advance();
    cursor.advance();
    if (operand == 1) cursor.advance();
  }
  for (int32_t tile = kFirst; tile < tiles; ++tile) {
    if (tile >= Start::kTiles) infos.wait_full();
    const TileInfo& info = shared.info[infos.stage()];
#pragma unroll C::kByToken ? 1 : C::kParts  // as registers allow
    for (int part = 0; part < C::kParts; ++part) {
      LaneTile t = lane_tile<C>(info, part);
      if (tile < Start::kTiles) t.look_up(params);
      // All thread blocks ask at once: first for what is wanted first.
      if (kFirst == 0 && tile == 0 && part == 0 && operand == 1) ptx::bar_sync(kFirstKeys, 64);
      copies.load(info, t, part, cursor);
      cursor.advance();
      if (kFirst == 0 && tile == 0 && part == 0 && operand == 0) ptx::bar_arrive(kFirstKeys, 64);
      if (kFirst == 0) mark_producer(Stage::kIssued);
      if (!C::kKeysAhead || operand == 1 || tile > 0) cursor.advance();
    }
    __syncwarp();
    if (lane == 0) infos.release();
    infos.advance();
  }
  copies.finish();
}

/// What both loaders leave to a helper of all tiles, in the ring's order.
template <class C, class Tiles>
__device__ __forceinline__ void help_load_tiles(const AttendParams& params, const TensorMaps& maps,
                                                SharedPlan<C>& shared) {
  constexpr int kAhead = C::kKeysAhead ? 1 : 0;
  using Copies = TokenCopies<C, Tiles, true>;
  Copies keys(params, maps, 0, shared), values(params, maps, 1, shared);
  RingCursor<Tiles::kSlots> cursor(Tiles::ring(shared));
  RingCursor<C::kInfos> key_infos(shared.info_ring), value_infos(shared.info_ring);
  const auto load = [&](Copies& copies, const RingCursor<C::kInfos>& infos, int part) {
    const TileInfo& info = shared.info[infos.stage()];
    copies.load(info, lane_tile<C>(info, part), part, cursor);
  };
  const int32_t tiles = shared.start.tile_count;
#pragma unroll 1
  for (int32_t tile = 0; tile < tiles + kAhead; ++tile) {
    if (tile >= Start::kTiles && tile < tiles) key_infos.wait_full();
#pragma unroll 1
    for (int part = 0; part < C::kParts; ++part) {
      if (tile < tiles) load(keys, key_infos, part);
      cursor.advance();  // past the last V's place beside a K that there is not, too
      if (tile < kAhead) continue;
      load(values, value_infos, part);
      cursor.advance();
    }
    key_infos.advance();
    if (tile < kAhead) continue;
    __syncwarp();
    if (threadIdx.x % 32 == 0) value_infos.release();
    value_infos.advance();
  }
  keys.finish();
}

/// Brings an area into L2, each thread block its share of it; by one thread.
__device__ __forceinline__ void prefetch_area(const void* area, const PrefetchedArea& p) {
  const auto begin = (reinterpret_cast<uintptr_t>(area) + 15) & ~uintptr_t{15};
  const int64_t at = int64_t{p.share} * blockIdx.x;
  const int64_t left = p.bytes - at;
  if (left <= 0) return;
  ptx::cp_async_bulk_prefetch_l2(reinterpret_cast<const void*>(begin + at),
                                 static_cast<uint32_t>(min(left, int64_t{p.share})));
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
