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
#include "cuda/kernels/attend/join.cuh"
#include "cuda/kernels/attend/merge.cuh"
#include "cuda/kernels/attend/narrow.cuh"
#include "cuda/kernels/attend/producer.cuh"
#include "cuda/kernels/attend/tiles.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/stmatrix.cuh"

namespace pando::cuda {

/// A warp's rows of a block that are complete, to out: by way of its query rows' place in shared
/// memory, so that each row leaves in one piece.
template <class C>
__device__ __forceinline__ void write_rows(const AttendParams& params, SharedPlan<C>& shared,
                                           const RowRange& direct, int consumer,
                                           const RowState<C>& r, const float (&scale)[2]) {
  using E = typename C::Element;
  constexpr int kChunks = C::kHeadDim / 8;  // of 16 bytes, in a row
  constexpr int kRowsAtOnce = 32 / kChunks;
  const uint32_t thread = this_thread<C>();
  const int lane = thread % 32;
  const int warp_row = thread / 32 % 4 * 16;
  // Chunk `chunk` + `lane_chunk` of row `row` + `lane_row`, swizzled. Neither pair has a bit in
  // common, so that what is known when compiled is one constant and what is the lane's another.
  const auto chunk_at = [&](int row, int lane_row, int chunk, int lane_chunk) {
    const int lanes = ((lane_chunk % 8) ^ (lane_row & 7)) * 16;
    return shared.q[consumer].rows[lane_chunk / 8] + (warp_row + lane_row) * 128 +
           chunk / 8 * int{sizeof(shared.q[consumer].rows[0])} + row * 128 +
           (lanes ^ ((chunk % 8) ^ (row & 7)) * 16);
  };
  const auto two = [&](int j, int i) {
    return ptx::cvt_pack(r.o[j * 4 + i * 2] * scale[i], r.o[j * 4 + i * 2 + 1] * scale[i], E{});
  };
#pragma unroll
  for (int j = 0; j < kChunks; j += 2) {
    ptx::stmatrix_x4(chunk_at(0, lane % 16, j, lane / 16), two(j, 0), two(j, 1), two(j + 1, 0),
                     two(j + 1, 1));
  }
  __syncwarp();
  // All reads first, then all writes: none waits for another.
  constexpr int kTurns = 16 / kRowsAtOnce;
  uint4 chunks[kTurns];
  uint16_t* places[kTurns];
  const int32_t first_row = warp_row + lane / kChunks;
  auto* const out = static_cast<uint16_t*>(params.out) + lane % kChunks * 8;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int row = turn * kRowsAtOnce;
    chunks[turn] =
        *reinterpret_cast<const uint4*>(chunk_at(row, lane / kChunks, 0, lane % kChunks));
    places[turn] = out + shared.places[consumer][first_row + row].out;
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    ptx::st_if(direct.has(first_row + turn * kRowsAtOnce), places[turn], chunks[turn]);
  }
}

/// Writes a block's rows: to out where all that was seen for them is here, else to partials.
/// `ending` is an Ending.
template <class C>
__device__ void finish_block(const AttendParams& params, SharedPlan<C>& shared, int4 ending,
                             int32_t block, int32_t kv_head, int consumer, RowState<C>& r) {
  const uint32_t thread = this_thread<C>();
  const int lane = thread % 32;
  const int warp = thread / 32 % 4;
  const RowRange touched(ending.y);
  const RowRange direct(ending.z);
  float scale[2], lse[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    scale[i] = r.sum[i] == 0 ? 0.0f : ptx::rcp(r.sum[i]);
    lse[i] =
        r.sum[i] == 0 ? -INFINITY : (r.top[i] * scale_log2(params, r) + ptx::lg2(r.sum[i])) * kLn2;
    if constexpr (C::kFp8) scale[i] *= __ldg(&params.v_scale[kv_head * params.v_scale_stride]);
  }
  if (!C::kOneTile && params.sinks != nullptr) {
    // In two steps, as where partials are merged.
#pragma unroll
    for (int j = 0; j < C::kHeadDim / 2; ++j) r.o[j] *= scale[j / 2 % 2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t row = warp * 16 + lane / 4 + i * 8;
      const int32_t head = head_of(params, block * kBlockRows + row, kv_head);
      scale[i] = direct.has(row) ? add_sink(params, head, lse[i]) : 1.0f;
    }
  }
  if (direct.begin < direct.end) {
    ptx::bar_sync(1 + consumer, 128);  // all its warps are done with the queries
    write_rows<C>(params, shared, direct, consumer, r, scale);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int32_t row = warp * 16 + lane / 4 + i * 8;
    if (!touched.has(row)) continue;
    if (direct.has(row)) {
      if (lane % 4 != 0 || params.lse == nullptr) continue;
      params.lse[shared.places[consumer][row].lse] = lse[i];
    } else {
      const int64_t slot = int64_t{ending.x} + row - touched.begin;
      auto* to = reinterpret_cast<float4*>(params.partials + slot * C::kHeadDim);
#pragma unroll
      for (int j = 0; j < C::kHeadDim / 16; ++j) {
        const float* const o = &r.o[j * 8 + i * 2];
        __stcg(&to[j * 4 + lane % 4],
               make_float4(o[0] * scale[i], o[1] * scale[i], o[4] * scale[i], o[5] * scale[i]));
      }
      if (lane % 4 == 0) __stcg(&partial_lse<C>(params, shared.start)[slot], lse[i]);
    }
  }
}

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
__device__ void consume(const AttendParams& params, SharedPlan<C>& shared, int consumer) {
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
    alone = C::kOneTile || unit.blocks == 1;
    half = alone ? 0 : consumer;
  };
  take_side(start.unit);
  load_rows<C, true>(params, start.unit.block + half, start.unit.kv_head, nullptr, 0, consumer,
                     shared, r);
  mark(Stage::kQueries, true);
  for (int32_t done = 1;; ++done) {
    const Unit& unit = all.get(done - 1);
    if constexpr (C::kOneTile) {
      attend_tiles<C, kHalfTokens>(params, r, cursor, shared, 1, true, consumer, 0);
    } else {
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
    }
    mark(Stage::kTiles);
    const bool exchanges = (C::kOneTile || done == units) && start.exchanged != 0;
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
    if (C::kOneTile || done == units) {
      if (finished > 0 && threadIdx.x % 128 == 0) {
        publish(params, shared.start, shared.epoch, consumer, done);
      }
      mark(Stage::kPublished);
      return;
    }
    all.open(done);
    const Unit& next = all.get(done);
    take_side(next);
    load_rows<C, false>(params, next.block + half, next.kv_head, all.rows(done, half), finished,
                        consumer, shared, r);
  }
}

/// What warps 0 and 2 of the producer do: K and V, each in its turn.
template <class C>
__device__ __forceinline__ void load_operand_tiles(const AttendParams& params,
                                                   const TensorMaps& maps, bool narrow,
                                                   SharedPlan<C>& shared) {
  const int operand = threadIdx.x / 64;
  if (C::kHasNarrow && narrow) {
    load_tiles<C, Landing<C, C::kHasNarrow>>(params, maps, operand, shared);
  } else {
    load_tiles<C, Landing<C, false>>(params, maps, operand, shared);
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
  if (threadIdx.x / 32 == 3) load_start<C>(params, shared);
  if (threadIdx.x == 64) prefetch_plan(params);
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
    shared.info_ring.init(1, C::kConsumers * 4 + 2);
    if constexpr (C::kUnitsAhead > 0) shared.ahead.ring.init(1, C::kConsumers * 4);
    shared.merge_ring.init(1, 1);
    shared.exchange.init(C::kConsumerWarps);
    ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
  }
  __syncthreads();
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
      ptx::setmaxnreg_inc<C::kConsumerRegisters>();
      mark(Stage::kRole);
      consume<One>(params, ptx::dynamic_shared<SharedPlan<One>>(), ptx::opaque(group - 1));
    }
  } else if (group == 0) {
    ptx::setmaxnreg_dec<C::kProducerRegisters>();
    switch (threadIdx.x / 32) {
      case 1: Scout<C>(params, shared).run(); break;
      case 3:
        fetch_first_merges<C>(params, shared);
        if constexpr (C::kUnitsAhead > 0) fetch_units<C>(params, shared);
        break;
      default: load_operand_tiles<C>(params, maps, narrow, shared);
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
    consume<C>(params, shared, group - 1);
  }
  merge_all<C>(params, shared);
  mark(Stage::kEnd);
  if (threadIdx.x % 32 == 0) leave<C>(params);
}

}  // namespace pando::cuda
