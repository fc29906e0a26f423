// What a consumer warpgroup does: its query rows, and the tiles of a unit one after another.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/merge_rows.cuh"
#include "cuda/kernels/attend/scores.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/shared.cuh"

namespace pando::cuda {

/// What query rows are found by, of a start record.
struct RowFinder {
  int32_t packed_rows, rows_at;
  int32_t first;  ///< packed row at which the first unit begins; 0 for other units
  int32_t q_row;  ///< that of `first`, where those that follow it do so in q too; else -1

  __device__ static RowFinder of(const Start& start, bool first_unit) {
    return {start.packed_rows, start.rows_at, first_unit ? start.unit.block * kBlockRows : 0,
            first_unit ? start.q_row : -1};
  }
};

/// Where the query of a packed row lies; that of a row beyond the last is another's.
struct QueryRow {
  bool present;
  int32_t index;  ///< of the plan's rows
  int32_t q_row, head;

  QueryRow() = default;
  /// `row` is the plan's; null where it must be looked up.
  __device__ __forceinline__ QueryRow(const AttendParams& params, const RowFinder& finder,
                                      int32_t packed, int32_t kv_head, const Row* row = nullptr) {
    present = packed < finder.packed_rows;
    index = params.by_group.quotient(present ? packed : finder.first);
    // The short way spares a read that the addresses of the queries would wait for.
    if (finder.q_row >= 0) {
      q_row = finder.q_row + index - params.by_group.quotient(finder.first);
    } else if (row != nullptr) {
      q_row = row->q_row;
    } else {
      q_row = __ldg(&section<Row>(params, finder.rows_at)[index].q_row);
    }
    head = kv_head * params.group + (present ? packed - index * params.group : 0);
  }
  __device__ const uint16_t* address(const AttendParams& params) const {
    return static_cast<const uint16_t*>(params.q) + q_row * params.q_row_stride +
           head * params.q_head_stride;
  }
};

/// Eight elements of a query by the sign of the scale, or by 0 for a scale of 0.
__device__ __forceinline__ uint4 scaled_queries(const AttendParams& params, uint4 eight) {
  const auto scaled = [&](uint32_t two) { return (two & params.q_keep) ^ params.q_flip; };
  return make_uint4(scaled(eight.x), scaled(eight.y), scaled(eight.z), scaled(eight.w));
}

/// What the holes of a query row hide, to where hide_holes looks for it.
template <class C>
__device__ __forceinline__ void keep_holes(const AttendParams& params, const Start& start,
                                           const QueryRow& row, TreeRow& to) {
  if (C::kOneTile || start.tree_rows_at == 0) return;
  const TreeRow* const from = section<TreeRow>(params, start.tree_rows_at) + row.index;
  reinterpret_cast<int4&>(to) = __ldg(reinterpret_cast<const int4*>(from));
}

/// A thread's part of the query rows of a block, on their way from global memory.
template <int kHeadDim>
struct RowQueries {
  QueryRow rows[2];
  int32_t visible_begin[2], visible_end[2];
  uint4 words[2][kHeadDim / 32];

  /// Row `i` of this thread's.
  __device__ static int32_t row(uint32_t thread, int i) {
    return thread / 32 % 4 * 16 + thread % 32 / 4 + i * 8;
  }
  /// `ahead` holds the block's rows; null where they must be looked up.
  __device__ __forceinline__ void ask(const AttendParams& params, const RowFinder& finder,
                                      int32_t block, int32_t kv_head, const Row* ahead,
                                      uint32_t thread) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t at = row(thread, i);
      rows[i] = QueryRow(params, finder, block * kBlockRows + at, kv_head,
                         ahead == nullptr ? nullptr : ahead + at);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto* const q = reinterpret_cast<const uint4*>(rows[i].address(params));
#pragma unroll
      for (int k = 0; k < kHeadDim / 32; ++k) words[i][k] = __ldg(q + k * 4 + thread % 4);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (ahead != nullptr) {
        const Row& mine = ahead[row(thread, i)];
        visible_begin[i] = rows[i].present ? mine.visible_begin : 0;
        visible_end[i] = rows[i].present ? mine.visible_end : 0;
      } else {
        const Row* const mine = section<Row>(params, finder.rows_at) + rows[i].index;
        visible_begin[i] = rows[i].present ? __ldg(&mine->visible_begin) : 0;
        visible_end[i] = rows[i].present ? __ldg(&mine->visible_end) : 0;
      }
    }
  }
};

/// Queries that were asked for, to the warpgroup's place in shared memory, in the 128-byte swizzle
/// of the A operand of the first product. While they are on their way, calls `meanwhile`.
template <class C, bool kFirst, class Meanwhile>
__device__ __forceinline__ void take_rows(const AttendParams& params,
                                          const RowQueries<C::kHeadDim>& asked, int32_t kv_head,
                                          int consumer, SharedPlan<C>& shared, RowState<C>& r,
                                          const Meanwhile& meanwhile) {
  if constexpr (C::kFewRegisters) consumer = this_thread<C>() / 128 - 1;
  const uint32_t thread = this_thread<C>();
  const int lane = thread % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    r.visible_begin[i] = asked.visible_begin[i];
    r.visible_end[i] = asked.visible_end[i];
    r.top[i] = -INFINITY;
    r.sum[i] = 0;
  }
  float k_scale = 1;
  if constexpr (C::kFp8) k_scale = __ldg(&params.k_scale[kv_head * params.k_scale_stride]);
  if constexpr (C::kFp8 && !C::kCapped) r.scale_log2 = params.scale_log2 * k_scale;
#pragma unroll
  for (int d = 0; d < C::kColumns / 2; ++d) r.o[d] = 0;
  meanwhile();
  if constexpr (!kFirst)
    ptx::bar_sync(1 + consumer, 128);  // the scores of the unit before are done
  if constexpr (C::kFp8 && C::kCapped) {
    if (threadIdx.x % 128 == 0) shared.fp8.into_cap[consumer] = params.into_cap * k_scale;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int32_t row = asked.row(thread, i);
    const QueryRow& from = asked.rows[i];
    if (lane % 4 == 0) {
      shared.places[consumer][row] = RowPlace::of(params, from.q_row, from.head);
      if constexpr (C::kFewRegisters) {
        shared.visible[consumer][row] = {r.visible_begin[i], r.visible_end[i]};
      }
      keep_holes<C>(params, shared.start, from, shared.tree_rows[consumer][row]);
    }
#pragma unroll
    for (int k = 0; k < C::kHeadDim / 32; ++k) {
      const uint4 w = scaled_queries(params, asked.words[i][k]);
      const int32_t chunk = k % 2 * 4 + lane % 4;  // of 16 bytes
      uint8_t* const to = shared.q[consumer].rows[k / 2] + row * 128 + (chunk ^ (row & 7)) * 16;
      *reinterpret_cast<uint4*>(to) = w;
    }
  }
  ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
  ptx::bar_sync(1 + consumer, 128);
}

/// Asks for the rows of a thread block's first unit, by a consumer. Where `start` lies in global
/// memory, the queries are on their way before it has come to shared memory.
template <class C, bool kGlobal>
__device__ __forceinline__ void ask_for_first_rows(const AttendParams& params, const Start& start,
                                                   RowQueries<C::kHeadDim>& queries) {
  const uint32_t thread = this_thread<C>();
  const auto four = [&](const int32_t& first) {
    const auto* const from = reinterpret_cast<const int4*>(&first);
    return kGlobal ? __ldg(from) : *from;
  };
  const int4 head = four(start.unit_begin);    // to packed_rows
  const int4 sections = four(start.units_at);  // to rows_at
  const int4 unit = four(start.unit.block);    // to split_first
  const int32_t q_row = kGlobal ? __ldg(&start.q_row) : start.q_row;
  if (head.x == head.y) return;
  const RowFinder finder{head.w, sections.w, unit.x * kBlockRows, q_row};
  const int32_t half = unit.y == 1 ? 0 : static_cast<int32_t>(thread / 128) - 1;
  queries.ask(params, finder, unit.x + half, unit.z, nullptr, thread);
}

/// A consumer warp's places: the next slot to be waited for, that of a K where keys are ahead, and
/// the next tile's description, which is there when the tile's K is.
template <class C>
struct TileCursor {
  RingCursor<C::kSlots> slot;
  RingCursor<C::kInfos> info;
  bool begun = false;  ///< past the first K of all

  __device__ explicit TileCursor(SharedPlan<C>& shared)
      : slot(shared.ring), info(shared.info_ring) {}

  /// Where the V of the last tile is whose K was taken.
  __device__ __forceinline__ RingCursor<C::kSlots> values() const {
    RingCursor<C::kSlots> v = slot;
    if constexpr (C::kKeysAhead) v.advance();
    return v;
  }
  /// Past a K that is multiplied with no V: beside it is what was the last V before, if anything.
  __device__ __forceinline__ void pass_first_keys() {
    slot.advance();
    if constexpr (C::kKeysAhead) {
      if (begun) slot.advance();
      begun = true;
    }
  }
  /// Past that V, to the K which is multiplied beside it; returns this, and goes past both.
  template <bool kOwnPart>
  __device__ __forceinline__ RingCursor<C::kSlots> next_keys() {
    if constexpr (!C::kKeysAhead) slot.advance();
    if constexpr (kOwnPart) pass_over(true);
    const RingCursor<C::kSlots> k = slot;
    slot.advance();
    if constexpr (C::kKeysAhead) slot.advance();
    return k;
  }
  /// Past the last V of a unit's tiles of one kind.
  __device__ __forceinline__ void pass_last_values() {
    if constexpr (!C::kKeysAhead) slot.advance();
  }

  /// Gives back the K in slot `k` and, unless more of the tile is to come, its description.
  template <int kShares>
  __device__ __forceinline__ void give_back_keys(const RingCursor<C::kSlots>& k, bool more) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      k.release();
      if (!more) info.release();
    }
    if (kShares > 1 && threadIdx.x % 32 == 1) k.release();
    if (!more) info.advance();
  }
  template <int kShares>
  __device__ __forceinline__ static void give_back_values(const RingCursor<C::kSlots>& v) {
    __syncwarp();
    if (threadIdx.x % 32 < kShares) v.release();
  }

  /// Past K and V that are for the other warpgroup alone, if `they_are`. Each slot holds the same
  /// part of every tile, so a warpgroup misses only phases of slots that it does not wait for;
  /// before it does, see `catch_up`.
  __device__ __forceinline__ void pass_over(bool they_are) {
    static_assert(C::kParts == 1 || C::kSlots == 2 * C::kParts);
    if (!they_are) return;
    slot.advance();
    slot.advance();
  }
  /// Both warpgroups have seen all slots filled that either has passed over.
  __device__ __forceinline__ static void catch_up() {
    constexpr int kBarrier = 12;
    ptx::bar_sync(kBarrier, 256);
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

/// Before products of what was copied by token: cp.async writes as a thread does, and wgmma reads
/// as TMA would write.
template <class C>
__device__ __forceinline__ void fence_copies() {
  if constexpr (C::kByToken) ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
}

/// Tiles of a unit, of which this warpgroup takes kTaken slots, N at once. The output of these
/// accumulates while the scores of the next become weights. `fresh`: nothing was seen before them.
template <class C, int kTaken>
__device__ __forceinline__ void attend_tiles(const AttendParams& params, RowState<C>& r,
                                             TileCursor<C>& cursor, SharedPlan<C>& shared,
                                             int32_t left, bool fresh, int consumer,
                                             int32_t tile_row) {
  constexpr bool kWhole = kTaken == kTileTokens;
  constexpr int N = kTaken < C::kSlotTokens ? kTaken : C::kSlotTokens;
  constexpr int kSteps = kTaken / N;  // of a tile
  // Of a split tile in parts, one is for this warpgroup alone: it gives back for both.
  constexpr bool kOwnPart = C::kParts > 1 && !kWhole;
  constexpr int kShares = kOwnPart ? 2 : 1;
  // Split tiles in parts have no register left for turns.
  constexpr bool kInTurns = !kOwnPart;
  // What the mask rule says is found while scores are multiplied, where there are registers for it.
  constexpr bool kMaskAhead = !C::kCapped && !C::kFewRegisters && !kWhole;
  int32_t first = kWhole ? 0 : consumer * kHalfTokens;  // in the tile
  const int32_t in_slot = C::kParts > 1 ? 0 : first;
  const auto warp_row = [&] {
    return tile_row + static_cast<int32_t>(this_thread<C>()) / 32 % 4 * 16;
  };
  const auto more = [&] { return kSteps > 1 && first + N < kTaken; };
  const int32_t named_barrier = 1 + consumer;
  const uint8_t* const q = shared.q[consumer].rows[0];
  if (left == 0) return;
  Scores<N> s;
  Weights<N> p;
  float alpha[2];
  left *= kSteps;
  if constexpr (C::kParts > 1 && kWhole) cursor.catch_up();
  if constexpr (kOwnPart) cursor.pass_over(consumer == 1);
  cursor.slot.wait_full();
  mark(Stage::kKeys, true);
  fence_copies<C>();
  ptx::wgmma_fence();
  start_scores<C, N>(s, q, shared.slots[cursor.slot.stage()], in_slot);
  ptx::wgmma_commit_group();
  // Scores that are being multiplied, once `wait` has waited for them: capped and masked.
  const auto take_scores = [&](auto wait) {
    const auto wait_later = [&] {
      if constexpr (kMaskAhead) wait();
    };
    if constexpr (!kMaskAhead) {
      wait();
      cap_scores<C, N>(params, shared, consumer, s);
    }
    return mask_scores<C, N>(s, r, shared, shared.info[cursor.info.stage()], consumer, first,
                             warp_row(), wait_later);
  };
  Holes<N> holes = take_scores([] {
    ptx::wgmma_wait_group<0>();
    mark(Stage::kScores, true);
  });
  cursor.template give_back_keys<kShares>(cursor.slot, more());
  cursor.pass_first_keys();
  if (softmax<C, N>(params, s, r, alpha) && !fresh) rescale<C>(r, alpha);
  pack_weights<typename C::Element, N>(s, p);
  mark(Stage::kWeights, true);
#pragma unroll 1
  while (--left > 0) {
    const RingCursor<C::kSlots> v = cursor.values();
    const RingCursor<C::kSlots> k = cursor.template next_keys<kOwnPart>();
    v.wait_full();
    fill_holes<C, N>(shared.slots[v.stage()], in_slot, holes, named_barrier);
    k.wait_full();
    if constexpr (kInTurns) Turns::take(consumer);
    fence_copies<C>();
    ptx::wgmma_fence();
    start_scores<C, N>(s, q, shared.slots[k.stage()], in_slot);
    ptx::wgmma_commit_group();
    start_output<C, N>(r, p, shared.slots[v.stage()], in_slot);
    ptx::wgmma_commit_group();
    if constexpr (kInTurns) Turns::pass(consumer);
    if constexpr (kSteps > 1) first ^= N;
    holes = take_scores([] { ptx::wgmma_wait_group<1>(); });
    cursor.template give_back_keys<kShares>(k, more());
    const bool moved = softmax<C, N>(params, s, r, alpha);
    // The output of the last tile was to hide under this.
    ptx::wgmma_wait_group_after<0>(r.sum[0] + r.sum[1]);
    cursor.template give_back_values<kShares>(v);
    if (moved) rescale<C>(r, alpha);
    pack_weights<typename C::Element, N>(s, p);
  }
  const RingCursor<C::kSlots> v = cursor.values();
  v.wait_full();
  fill_holes<C, N>(shared.slots[v.stage()], in_slot, holes, named_barrier);
  fence_copies<C>();
  ptx::wgmma_fence();
  start_output<C, N>(r, p, shared.slots[v.stage()], in_slot);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  cursor.template give_back_values<kShares>(v);
  cursor.pass_last_values();
  if constexpr (kOwnPart) cursor.pass_over(consumer == 0);
}

/// Passes by whole tiles of a unit whose second block has no rows, in the steps of attend_tiles.
template <class C>
__device__ __forceinline__ void skip_tiles(TileCursor<C>& cursor, int32_t left, int consumer) {
  if (left == 0) return;
  left *= C::kParts;
  if constexpr (C::kParts > 1) cursor.catch_up();
  const auto more = [&] { return C::kParts > 1 && left % C::kParts != 1; };
  cursor.slot.wait_full();
  cursor.template give_back_keys<1>(cursor.slot, more());
  cursor.pass_first_keys();
#pragma unroll 1
  while (--left > 0) {
    const RingCursor<C::kSlots> v = cursor.values();
    const RingCursor<C::kSlots> k = cursor.template next_keys<false>();
    Turns::take(consumer);
    Turns::pass(consumer);
    k.wait_full();
    cursor.template give_back_keys<1>(k, more());
    v.wait_full();
    cursor.template give_back_values<1>(v);
  }
  const RingCursor<C::kSlots> v = cursor.values();
  v.wait_full();
  cursor.template give_back_values<1>(v);
  cursor.pass_last_values();
}

}  // namespace pando::cuda
