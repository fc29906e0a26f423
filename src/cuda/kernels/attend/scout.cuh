// The scout, a warp of the producer: it runs ahead of the loads and describes the tiles to come.
#pragma once

#include <cstdint>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/timeline.cuh"

namespace pando::cuda {

/// Deals out the halves of this thread block's tiles in the order in which they are computed.
class TileOrder {
 public:
  struct Next {
    int32_t half;  ///< of this lane's eight granules; -1: there is none
    int32_t kv_head;
  };

  __device__ TileOrder(const AttendParams& params, const Start& start, int lane)
      : params_(params),
        start_(start),
        unit_(start.unit_begin),
        last_(start.unit_end),
        side_(lane / 8 % 2) {
    if (unit_ < last_) open(start.unit);
  }

  __device__ bool next(Next& out) {
    if (left_ == 0) return false;
    out.half = at_ < end_ ? at_ : -1;
    out.kv_head = kv_head_;
    at_ += stride_;
    if (--left_ == 0) {
      left_ = then_;
      at_ = then_at_;
      end_ = then_end_;
      stride_ = then_stride_;
      then_ = 0;
      if (left_ == 0 && ++unit_ < last_) open(section<Unit>(params_, start_.units_at)[unit_]);
    }
    return true;
  }

 private:
  __device__ void open(const Unit& unit) {
    kv_head_ = unit.kv_head;
    left_ = unit.whole_tiles;
    at_ = unit.whole_begin + side_;
    end_ = unit.whole_end;
    stride_ = 2;
    then_ = unit.split_tiles;
    then_at_ = unit.split_begin[side_];
    then_end_ = unit.split_end[side_];
    then_stride_ = unit.split_stride();
    if (left_ != 0 && (unit.split_first == 0 || then_ == 0)) return;
    swap(left_, then_);
    swap(at_, then_at_);
    swap(end_, then_end_);
    swap(stride_, then_stride_);
  }
  __device__ static void swap(int32_t& a, int32_t& b) {
    const int32_t c = a;
    a = b;
    b = c;
  }

  const AttendParams& params_;
  const Start& start_;
  int32_t unit_, last_, side_;
  int32_t kv_head_ = 0, left_ = 0, at_ = 0, end_ = 0, stride_ = 0;
  int32_t then_ = 0, then_at_ = 0, then_end_ = 0, then_stride_ = 0;
};

/// One lane's run of its half's runs: lane i of each eight holds the i-th.
struct LaneRun {
  int4 place;     ///< slot_begin, token_begin, token_end, page_offset
  uint32_t rows;  ///< as Run::rows

  /// `runs` lie in global memory.
  __device__ void load(const Run* runs, int32_t count, int lane) {
    place.x = 0x7fffffff;
    if (lane % 8 >= count) return;
    const Run* from = &runs[lane % 8];
    place = *reinterpret_cast<const int4*>(from);
    rows = from->rows;
  }
};

/// One lane's part of a tile: the granule of 8 slots that it describes, and the box it loads.
struct LaneTile : Granule {
  /// Describes granule `lane` % 16 of a tile, of which the lane's half starts at `slot_begin` of
  /// its stream. The page id may still travel.
  __device__ void describe(const AttendParams& params, const LaneRun& run, int32_t slot_begin,
                           int lane) {
    const int32_t slot = slot_begin + lane % 8 * kGranule;
    const int first = lane & ~7;
    int at = first;  // last lane whose run starts at or before the slot
#pragma unroll
    for (int step = 4; step > 0; step /= 2) {
      if (__shfl_sync(~0u, run.place.x, at + step) <= slot) at += step;
    }
    const Run mine{.slot_begin = __shfl_sync(~0u, run.place.x, at),
                   .token_begin = __shfl_sync(~0u, run.place.y, at),
                   .token_end = __shfl_sync(~0u, run.place.z, at),
                   .page_offset = __shfl_sync(~0u, run.place.w, at),
                   .rows = __shfl_sync(~0u, run.rows, at),
                   .reserved = {}};
    static_cast<Granule&>(*this) =
        Granule::describe(mine, mine.slot_begin <= slot, slot, lane % 8, params.pages);
    look_up(params);
  }
  /// From the page's index to its id, where a copy needs it.
  __device__ void look_up(const AttendParams& params) {
    if (is(kBig | kSmall) && !params.pages.by_token()) {
      page = __ldg(&params.page_ids[page]);
    }
  }

  /// Lanes 0-15 write one tile, lanes 16-31 another, where `to` is not null.
  __device__ void write(const AttendParams& params, TileInfo* to, int lane, int32_t kv_head) const {
    const int granule = lane % kGranules;
    const int shift = lane & kGranules;  // of the tile's votes
    const int32_t all_tokens = __reduce_add_sync(0xffffu << shift, tokens(params.pages));
    const uint32_t here = rows & 0xffff;
    const uint32_t half_rows = __shfl_sync(~0u, here, lane & ~7);
    const uint32_t tile_rows = __shfl_sync(~0u, here, shift);
    const uint32_t full = __ballot_sync(~0u, is(Run::kFull)) >> shift;
    const uint32_t plain = __ballot_sync(~0u, is(Run::kPlain) && here == half_rows) >> shift;
    const uint32_t alike = __ballot_sync(~0u, is(Run::kPlain) && here == tile_rows) >> shift;
    const uint32_t holes = __ballot_sync(~0u, has_hole()) >> shift;
    if (to == nullptr) return;
    to->position[granule] = position;
    to->rows[granule] = rows;
    to->page[granule] = page;
    if (granule < 2) {
      to->state[granule] = TileInfo::state_of(0xffu << granule * 8, full, plain, holes);
    }
    if (granule == 2) to->state[2] = TileInfo::state_of(0xffff, full, alike, holes);
    if (granule == 3) {
      to->kv_head = kv_head;
      to->tokens = all_tokens;
    }
  }
};

/// Describes the thread block's tiles, two at a time, each by 16 lanes, as far ahead of the loads
/// as the ring of descriptions goes: which half, its runs and its page ids are reads that depend on
/// each other.
template <class C>
class Scout {
 public:
  __device__ Scout(const AttendParams& params, SharedPlan<C>& shared)
      : params_(params),
        shared_(shared),
        lane_(threadIdx.x % 32),
        halves_(section<Half>(params, shared.start.halves_at)),
        runs_(section<Run>(params, shared.start.runs_at)),
        order_(params, shared.start, lane_),
        cursor_(shared.info_ring) {}

  __device__ void run() {
    // The first tiles came with the start record.
    TileOrder::Next known;
    for (int i = 0; i < Start::kTiles && order_.next(known); ++i) {
      if (lane_ == 0) cursor_.fill();
      __syncwarp();
      cursor_.advance();
    }
    Named named = name();
    open_runs(half_of(named));
    while (named.count > 0) {
      LaneTile tile;
      tile.describe(params_, run_, slot_, lane_);
      const Named next = name();
      const int4 half = half_of(next);
      emit(tile, named);
      open_runs(half);
      named = next;
    }
  }

 private:
  struct Named {
    int32_t half;     ///< of this lane; -1: there is none
    int32_t kv_head;  ///< of this lane's tile
    int32_t count;    ///< tiles: 0, 1 or 2
  };

  __device__ Named name() {
    Named named{-1, 0, 0};
    for (int i = 0; i < 2; ++i) {
      TileOrder::Next next;
      if (!order_.next(next)) break;
      ++named.count;
      if (lane_ / 16 == i) {
        named.half = next.half;
        named.kv_head = next.kv_head;
      }
    }
    return named;
  }
  __device__ int4 half_of(const Named& named) const {
    if (named.half < 0) return make_int4(0, 0, 0, 0);
    return __ldg(reinterpret_cast<const int4*>(&halves_[named.half]));
  }
  __device__ void open_runs(int4 half) {
    run_.load(runs_ + half.y, half.z, lane_);
    slot_ = half.x;
  }
  __device__ void emit(const LaneTile& tile, const Named& named) {
    RingCursor<C::kInfos> at = cursor_;
    TileInfo* mine = nullptr;
    for (int i = 0; i < named.count; ++i) {
      at.wait_empty();
      if (lane_ / 16 == i) mine = &shared_.info[at.stage()];
      at.advance();
    }
    tile.write(params_, mine, lane_, named.kv_head);
    __syncwarp();
    for (int i = 0; i < named.count; ++i) {
      if (lane_ == 0) cursor_.fill();
      cursor_.advance();
    }
    mark_producer(Stage::kDescribed);
  }

  const AttendParams& params_;
  SharedPlan<C>& shared_;
  int lane_;
  const Half* halves_;
  const Run* runs_;
  TileOrder order_;
  RingCursor<C::kInfos> cursor_;
  LaneRun run_;
  int32_t slot_ = 0;
};

}  // namespace pando::cuda
