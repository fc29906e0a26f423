// Consumers of a thread block that has one tile, of one block. Each warpgroup computes the weights
// of half of the tokens, and the output of half of the columns: they hand weights to each other,
// a quarter of the bytes that outputs would be, and each ends with half of what is to be written.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/exchange.cuh"
#include "cuda/kernels/attend/finish.cuh"
#include "cuda/kernels/attend/join.cuh"
#include "cuda/kernels/attend/scores.cuh"
#include "cuda/kernels/attend/tiles.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/stmatrix.cuh"

namespace pando::cuda {

/// What each warpgroup hands to the other, in slots of the ring that one tile leaves alone.
template <class C>
struct HandedWeights {
  uint8_t weights[C::kConsumers][kBlockRows * 128];  ///< swizzled, of 64 tokens
  float4 ends[C::kConsumers][128];                   ///< of each thread: tops, sums

  __device__ static HandedWeights& of(SharedPlan<C>& shared) {
    constexpr int kFirst = C::kFirstValues + 1;
    static_assert(sizeof(HandedWeights) <=
                  (HandedRows<C>::kFirstSlot - kFirst) * sizeof(shared.slots[0]));
    return *reinterpret_cast<HandedWeights*>(shared.slots[kFirst]);
  }
};

/// Columns from `column` on of O = P V, of the half of the tile that begins at token `first`;
/// asynchronous. `weights` has those of 16 tokens for each step, as registers or as a descriptor.
template <class C, class A>
__device__ __forceinline__ void start_columns(float (&o)[C::kColumns / 2], const A& weights,
                                              const uint8_t* v, int32_t first, int32_t column) {
  const uint8_t* const from =
      v + C::granule_of(first) + column / 64 * C::kHalfBytes + column % 64 * 2;
  const uint64_t values =
      ptx::matrix_descriptor(ptx::shared_address(from), C::kHalfBytes, C::kGranuleBytes);
#pragma unroll
  for (int step = 0; step < kHalfTokens / 16; ++step) {
    mma<C::kColumns, true, typename C::Element>(
        o, weights(step), ptx::advance(values, C::granule_of(step * 16)), step > 0);
  }
}

/// The row queries came ahead of the role. Registers are asked for once they are stored: until then
/// the producer has better to do than to give its own up.
template <class C>
__device__ __forceinline__ void consume_one_tile(const AttendParams& params,
                                                 const RowQueries<C::kHeadDim>& queries,
                                                 SharedPlan<C>& shared, int consumer) {
  constexpr int N = kHalfTokens;
  constexpr int kHanded = 3, kWritten = 4;  // barriers
  const Unit& unit = shared.start.unit;
  const uint32_t thread = this_thread<C>() % 128;
  const int lane = thread % 32;
  const int warp_row = thread / 32 * 16;
  const int32_t first = consumer * N;  // token of the tile
  RowState<C> r;
  HandedWeights<C>& handed = HandedWeights<C>::of(shared);
  const RingCursor<C::kSlots> keys(shared.ring, 0), values(shared.ring, C::kFirstValues);
  take_rows<C, true>(params, queries, unit.kv_head, consumer, shared, r, [] {});
  mark(Stage::kQueries, true);
  ptx::setmaxnreg_inc<C::kConsumerRegisters>();
  keys.wait_full();
  mark(Stage::kKeys, true);
  Scores<N> s;
  Weights<N> p;
  float alpha[2];
  ptx::wgmma_fence();
  start_scores<C, N>(s, shared.q[consumer].rows[0], shared.slots[keys.stage()], first);
  ptx::wgmma_commit_group();
  const Holes<N> holes =
      mask_scores<C, N>(s, r, shared, shared.info[0], consumer, first, warp_row, [] {
        ptx::wgmma_wait_group<0>();
        mark(Stage::kScores, true);
      });
  softmax<C, N>(params, s, r, alpha);
  pack_weights<typename C::Element, N>(s, p);
  handed.ends[consumer][thread] = make_float4(r.top[0], r.top[1], r.sum[0], r.sum[1]);
#pragma unroll
  for (int step = 0; step < N / 16; ++step) {
    const int row = warp_row + lane % 16;
    const int chunk = step * 2 + lane / 16;  // of 16 bytes
    ptx::stmatrix_x4(handed.weights[consumer] + row * 128 + (chunk ^ (row & 7)) * 16, p[step][0],
                     p[step][1], p[step][2], p[step][3]);
  }
  ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
  mark(Stage::kWeights, true);
  uint8_t* const v = shared.slots[values.stage()];
  values.wait_full();
  fill_holes<C, N>(v, first, holes, 1 + consumer);
  float theirs[C::kColumns / 2];
  const int32_t column = first_column<C>(consumer);
  ptx::wgmma_fence();
  start_columns<C>(
      r.o, [&](int step) -> const uint32_t(&)[4] { return p[step]; }, v, first, column);
  ptx::wgmma_commit_group();
  ptx::bar_sync(kHanded, 256);
  const uint64_t weights =
      ptx::matrix_descriptor(ptx::shared_address(handed.weights[1 - consumer]), 16, 1024);
  start_columns<C>(
      theirs, [&](int step) { return ptx::advance(weights, step * 32); }, v, first ^ N, column);
  ptx::wgmma_commit_group();
  const float4 ends = handed.ends[1 - consumer][thread];
  ptx::wgmma_wait_group<0>();
  mark(Stage::kTiles);
  join_rows<C>(params, r, ends, [&](int j) {
    return make_float4(theirs[j * 4], theirs[j * 4 + 1], theirs[j * 4 + 2], theirs[j * 4 + 3]);
  });
  reduce_sums<C>(r);
  mark(Stage::kJoined);
  if (shared.start.exchanged != 0) {
    ptx::cluster_wait();  // until its signals are there
    exchange_rows<C>(params, shared, consumer, r);
    mark(Stage::kExchanged);
  }
  const int4 ending = *reinterpret_cast<const int4*>(&unit.ending[0]);
  finish_block<C>(params, shared, ending, unit.block, unit.kv_head, consumer, r);
  mark(Stage::kWritten);
  if (ending.x >= 0) {
    if (consumer == 1) {
      ptx::bar_arrive(kWritten, 256);
    } else {
      ptx::bar_sync(kWritten, 256);
      if (thread == 0) publish(params, shared.start, shared.epoch, 0, 1);
    }
  }
  mark(Stage::kPublished);
}

}  // namespace pando::cuda
