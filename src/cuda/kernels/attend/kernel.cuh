// The attend kernel, for a static list of units in one persistent launch.
//
//   s_ij = scale * q_i . k_j      o_i = sum_j exp(s_ij - lse_i) v_j      lse_i = ln sum_j exp(s_ij)
//
// with a soft cap s_ij = cap * tanh(scale * q_i . k_j / cap), and with a sink one more term of the
// last sum,
// over the positions j that row i sees, by the online softmax of FlashAttention (Dao et al., 2022).
// Roles: warpgroup 0 produces (see producer.cuh), the others consume.
#pragma once

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/convert.cuh"
#include "cuda/kernels/attend/exchange.cuh"
#include "cuda/kernels/attend/finish.cuh"
#include "cuda/kernels/attend/join.cuh"
#include "cuda/kernels/attend/merge.cuh"
#include "cuda/kernels/attend/narrow.cuh"
#include "cuda/kernels/attend/one_tile.cuh"
#include "cuda/kernels/attend/producer.cuh"
#include "cuda/kernels/attend/tiles.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/shared.cuh"

namespace pando::cuda {

/// Both warpgroups attended the same rows to different tokens: each thread of the second hands its
/// state over to the same thread of the first, by way of both warpgroups' query rows.
template <class C>
__device__ void join_halves(const AttendParams& params, RowState<C>& r, SharedPlan<C>& shared,
                            int consumer) {
  constexpr int kReady = 3, kFree = 4;
  constexpr int kFours = C::kHeadDim / 16;  // of a thread's output, in a half
  const uint32_t thread = this_thread<C>() % 128;
  const auto hand = [&](int half) {
#pragma unroll
    for (int j = 0; j < kFours; ++j) {
      const float* const o = &r.o[(half * kFours + j) * 4];
      shared.q[1 - half].handed[j][thread] = make_float4(o[0], o[1], o[2], o[3]);
    }
  };
  if (consumer == 1) {
    ptx::bar_sync(1 + consumer, 128);  // all its warps are done with the queries
    hand(0);
    shared.handed_ends[thread] = make_float4(r.top[0], r.top[1], r.sum[0], r.sum[1]);
    ptx::bar_sync(kFree, 256);  // so are those of the first
    hand(1);
    ptx::bar_arrive(kReady, 256);
    ptx::bar_sync(kFree, 256);  // all is taken
    return;
  }
  ptx::bar_arrive(kFree, 256);
  ptx::bar_sync(kReady, 256);
  join_rows<C>(params, r, shared.handed_ends[thread],
               [&](int j) { return shared.q[1 - j / kFours].handed[j % kFours][thread]; });
  ptx::bar_arrive(kFree, 256);
}

/// A thread block's units, the `nth` counted from 0: the first came with the start record, the
/// others were fetched ahead by warp 3 or are read where they lie.
template <class C>
struct Units {
  const AttendParams& params;
  SharedPlan<C>& shared;

  __device__ __forceinline__ const Unit& get(int32_t nth) const {
    if constexpr (C::kUnitsAhead > 0) {
      return nth == 0 ? shared.start.unit : slot(nth).unit;
    } else {
      return nth_unit(params, shared.start, nth);
    }
  }
  /// Of its block `half`; null where they must be looked up.
  __device__ __forceinline__ const Row* rows(int32_t nth, int half) const {
    if constexpr (C::kUnitsAhead > 0) return slot(nth).rows[half];
    return nullptr;
  }
  /// Leaves the one before, which is done, for the `nth`.
  __device__ __forceinline__ void open(int32_t nth) const {
    if constexpr (C::kUnitsAhead > 0) {
      __syncwarp();
      if (nth > 1 && threadIdx.x % 32 == 0) ring(nth - 1).release();
      ring(nth).wait_full();
    }
  }

 private:
  __device__ __forceinline__ auto ring(int32_t nth) const {
    return RingCursor<C::kUnitsAhead>(shared.ahead.ring, nth - 1);
  }
  __device__ __forceinline__ const UnitAhead& slot(int32_t nth) const {
    return shared.ahead.slots[(nth - 1) % C::kUnitsAhead];
  }
};

template <class C>
__device__ void consume(const AttendParams& params, RowQueries<C::kHeadDim>& queries,
                        SharedPlan<C>& shared, int consumer) {
  TileCursor<C> cursor(shared);
  Turns::begin(consumer);
  const Start& start = shared.start;
  const int32_t units = start.unit_end - start.unit_begin;
  if (units == 0) return;
  const Units<C> all{params, shared};
  RowState<C> r;
  bool alone;
  int32_t half;  // of the unit's blocks
  const auto take_side = [&](const Unit& unit) {
    alone = unit.blocks == 1;
    half = alone ? 0 : consumer;
  };
  take_side(start.unit);
  if constexpr (!C::kAsksAtOnce) ask_for_first_rows<C, false>(params, start, queries);
  take_rows<C, true>(params, queries, start.unit.kv_head, consumer, shared, r, [] {});
  mark(Stage::kQueries, true);
  for (int32_t done = 1;; ++done) {
    const Unit& unit = all.get(done - 1);
    // Lists of batch-invariant plans are over pairs, even where there is no second block.
    const bool absent = (unit.block + half) * kBlockRows >= start.packed_rows;
#pragma unroll 1
    for (int turn = absent ? 2 : 0; turn < 2; ++turn) {
      if (turn != unit.split_first) {
        attend_tiles<C, kHalfTokens>(params, r, cursor, shared, unit.split_tiles,
                                     turn == 0 || unit.whole_tiles == 0, consumer,
                                     half * kBlockRows);
      } else {
        attend_tiles<C, kTileTokens>(params, r, cursor, shared, unit.whole_tiles,
                                     turn == 0 || unit.split_tiles == 0, consumer,
                                     half * kBlockRows);
      }
    }
    if (absent) skip_tiles<C>(cursor, unit.whole_tiles, consumer);
    mark(Stage::kTiles);
    const bool exchanges = done == units && start.exchanged != 0;
    if (exchanges) open_to_cluster<C>(shared);
    reduce_sums<C>(r);
    if constexpr (C::kFewRegisters) {  // nothing of this is kept beside the tiles
      consumer = this_thread<C>() / 128 - 1;
      take_side(unit);
    }
    if (alone) {
      join_halves<C>(params, r, shared, consumer);
      mark(Stage::kJoined);
    }
    int32_t finished = 0;  // units that the grid has yet to be told of
    if (!alone || consumer == 0) {
      if (exchanges && (start.exchanged >> half & 1) != 0) {
        exchange_rows<C>(params, shared, consumer, r);
        mark(Stage::kExchanged);
      }
      const int4 ending = *reinterpret_cast<const int4*>(&unit.ending[half]);
      finish_block<C>(params, shared, ending, unit.block + half, unit.kv_head, consumer, r);
      mark(Stage::kWritten);
      if (ending.x >= 0) {
        ptx::bar_sync(1 + consumer, 128);
        finished = done;
      }
    }
    if (done == units) {
      if (finished > 0 && threadIdx.x % 128 == 0) {
        publish(params, shared.start, shared.epoch, consumer, done);
      }
      mark(Stage::kPublished);
      return;
    }
    all.open(done);
    const Unit& next = all.get(done);
    take_side(next);
    const uint32_t thread = this_thread<C>();
    queries.ask(params, RowFinder::of(start, false), next.block + half, next.kv_head,
                all.rows(done, half), thread);
    take_rows<C, false>(params, queries, next.kv_head, consumer, shared, r, [&] {
      if (finished > 0 && threadIdx.x % 128 == 0) {
        publish(params, shared.start, shared.epoch, consumer, finished);
      }
    });
  }
}

/// What warps 0 and 2 of the producer do: K and V, each in its turn; and warp 3, where it helps.
template <class C>
__device__ __forceinline__ void load_operand_tiles(const AttendParams& params,
                                                   const TensorMaps& maps, bool narrow,
                                                   SharedPlan<C>& shared) {
  const int operand = threadIdx.x / 64;
  const auto load = [&]<class Tiles>(Tiles) {
    if constexpr (C::kByToken) {
      if (threadIdx.x / 32 == 3) return help_load_tiles<C, Tiles>(params, maps, shared);
    }
    load_tiles<C, Tiles>(params, maps, operand, shared);
  };
  if (C::kHasNarrow && narrow) {
    load(Landing<C, C::kHasNarrow>{});
  } else {
    load(Landing<C, false>{});
  }
}

/// What the producer's warps have brought is there for all. They wait for each other alone, as the
/// others are busy asking for their queries.
template <class C>
__device__ __forceinline__ void begin_roles() {
  constexpr int kAll = 0, kProducers = 13;  // barriers
  if (threadIdx.x < 128) {
    ptx::bar_arrive(kAll, C::kThreads);
    ptx::bar_sync(kProducers, 128);
  } else {
    ptx::bar_sync(kAll, C::kThreads);
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    attend_kernel(const __grid_constant__ AttendParams params,
                  const __grid_constant__ TensorMaps maps) {
  static_assert(sizeof(SharedPlan<C>) <= kMostSharedBytes);
  auto& shared = ptx::dynamic_shared<SharedPlan<C>>();
  const int group = threadIdx.x / 128;
  mark(Stage::kBegin);
  FirstTile<C> first{};
  if (C::kAsksFirst && group == 0) first.read(params);
  RowQueries<C::kHeadDim> queries;
  if (threadIdx.x / 32 == 3) load_start<C>(params, shared);
  if (threadIdx.x == 64) {
    prefetch_area(params.page_ids, params.page_ids_area);
    prefetch_area(params.schedule, params.schedule_area);
  }
  if (threadIdx.x == 32) prefetch_area(params.q, params.q_area);
  if (!C::kByToken && threadIdx.x == 32) {
    ptx::prefetch_tensormap(&maps.k_big);
    ptx::prefetch_tensormap(&maps.v_big);
    ptx::prefetch_tensormap(&maps.k_small);
    ptx::prefetch_tensormap(&maps.v_small);
  }
  if (threadIdx.x == 0) {
    shared.ring.init(C::kFp8 ? 4 : C::kFillers, C::kConsumers * 4);
    if constexpr (C::kFp8) shared.fp8.ring.init(C::kFillers, 4);
    if constexpr (C::kFp8) shared.fp8.narrow_ring.init(C::kFillers, C::kConsumers * 4);
    shared.info_ring.init(1, C::kConsumers * 4 + C::kLoaders);
    if constexpr (C::kUnitsAhead > 0) shared.ahead.ring.init(1, C::kConsumers * 4);
    shared.merge_ring.init(1, 1);
    shared.exchange.init(C::kConsumerWarps);
    ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
  }
  if (C::kAsksFirst && group == 0) first.tile.look_up(params);
  if (C::kAsksAtOnce && group != 0) {
    ask_for_first_rows<C, true>(params, start_record(params), queries);
  }
  begin_roles<C>();
  ptx::cluster_arrive();
  // Roles in an order by which ptxas lays out their code so that what one launch runs is within
  // reach of the instruction cache: see "Where code lies" in the README.
  const bool narrow = C::kHasNarrow && shared.start.narrow != 0;
  const bool one_tile = C::kHasOneTile && shared.start.one_tile != 0 && params.sinks == nullptr;
  if (narrow && (group == 1 || group == 2)) {
    if constexpr (C::kHasNarrow) {
      ptx::setmaxnreg_inc<C::kConsumerRegisters>();
      mark(Stage::kRole);
      consume_narrow<C>(params, shared);
    }
  } else if (one_tile && group != 0) {
    if constexpr (C::kHasOneTile) {
      using One = typename C::OneTile;
      static_assert(sizeof(SharedPlan<One>) == sizeof(SharedPlan<C>));
      mark(Stage::kRole);
      consume_one_tile<One>(params, queries, ptx::dynamic_shared<SharedPlan<One>>(),
                            ptx::opaque(group - 1));
    }
  } else if (group == 0) {
    if (!one_tile) ptx::setmaxnreg_dec<C::kProducerRegisters>();
    const int warp = threadIdx.x / 32;
    if constexpr (C::kAsksFirst) first.ask(params, maps, one_tile, shared);
    if (one_tile) ptx::setmaxnreg_dec<C::kProducerRegisters>();
    if (warp == 3) {
      if constexpr (C::kByToken) load_operand_tiles<C>(params, maps, narrow, shared);
      fetch_first_merges<C>(params, shared);
      if constexpr (C::kUnitsAhead > 0) fetch_units<C>(params, shared);
    } else if (!one_tile) {
      if (warp == 1) {
        Scout<C>(params, shared).run();
      } else {
        load_operand_tiles<C>(params, maps, narrow, shared);
      }
    }
    return;
  } else if (C::kFp8 && group == 1 + C::kConsumers) {
    if constexpr (C::kFp8) {
      ptx::setmaxnreg_dec<C::kConverterRegisters>();
      if (!narrow) convert_tiles<C>(shared);
    }
    return;
  } else {
    ptx::setmaxnreg_inc<C::kConsumerRegisters>();
    mark(Stage::kRole);
    consume<C>(params, queries, shared, group - 1);
  }
  merge_all<C>(params, shared);
  mark(Stage::kEnd);
  if (threadIdx.x % 32 == 0) leave<C>(params);
}

}  // namespace pando::cuda
