// How the two thread blocks of a cluster end a list in two parts: each hands over what it has seen
// for half of the rows, to the other's shared memory, and writes the others to out.
#pragma once

#include <cstdint>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/join.cuh"
#include "cuda/kernels/attend/scores.cuh"
#include "cuda/ptx/cluster.cuh"

namespace pando::cuda {

/// What a warp hands over: to slots of the ring that the other thread block has done with, or does
/// not use.
template <class C>
struct HandedRows {
  float4 o[C::kColumns / 8][32];
  float4 ends[32];  ///< tops, sums

  /// Where they lie; one tile leaves the last slots alone.
  static constexpr int kFirstSlot = C::kOneTile ? C::kSlots - 128 / C::kHeadDim : 0;

  __device__ static HandedRows& of(SharedPlan<C>& shared, int handed) {
    static_assert(kHandingWarps * sizeof(HandedRows) <=
                  sizeof(shared.slots[0]) * (C::kSlots - kFirstSlot));
    return reinterpret_cast<HandedRows*>(shared.slots[kFirstSlot])[handed];
  }
};

/// Tells the other thread block that this warp has read its last tile.
template <class C>
__device__ __forceinline__ void open_to_cluster(SharedPlan<C>& shared) {
  ptx::cluster_wait();  // until its signals are there
  if (threadIdx.x % 32 == 0) shared.exchange.open.come_to(cluster_rank() ^ 1);
}

/// A warp's rows of a block, of which both thread blocks of the cluster have a part: hands this
/// part over, or gets the other's and joins it.
template <class C>
__device__ __forceinline__ void exchange_rows(const AttendParams& params, SharedPlan<C>& shared,
                                              int consumer, RowState<C>& r) {
  const uint32_t thread = this_thread<C>();
  const int lane = thread % 32;
  const int warp = thread / 32 % 4;
  const int handed = consumer * 2 + warp % 2;
  const int rank = cluster_rank();
  HandedRows<C>& rows = HandedRows<C>::of(shared, handed);
  Signal& there = shared.exchange.handed[handed];
  if (warp / 2 != rank) {
    const uint32_t to = ptx::in_thread_block(&rows.o[0][lane], rank ^ 1);
    const uint32_t complete = there.in(rank ^ 1);
    if constexpr (!C::kOneTile) shared.exchange.open.wait();
#pragma unroll
    for (int j = 0; j < C::kColumns / 8; ++j) {
      const float* const o = &r.o[j * 4];
      ptx::st_async(to + j * sizeof(rows.o[0]), make_float4(o[0], o[1], o[2], o[3]), complete);
    }
    ptx::st_async(to + sizeof(rows.o), make_float4(r.top[0], r.top[1], r.sum[0], r.sum[1]),
                  complete);
    return;
  }
  if (lane == 0) there.expect(sizeof(rows));
  there.wait();
  join_rows<C>(params, r, rows.ends[lane], [&](int j) { return rows.o[j][lane]; });
}

}  // namespace pando::cuda
