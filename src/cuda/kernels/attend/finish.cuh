// The end of a unit for a warpgroup: its rows, to out or to the partials.
#pragma once

#include <cstdint>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/merge_rows.cuh"
#include "cuda/kernels/attend/scores.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/stmatrix.cuh"

namespace pando::cuda {

/// A warp's rows of a block that are complete, to out: by way of its query rows' place in shared
/// memory, so that each row leaves in one piece.
template <class C>
__device__ __forceinline__ void write_rows(const AttendParams& params, SharedPlan<C>& shared,
                                           const RowRange& direct, int consumer,
                                           const RowState<C>& r, const float (&scale)[2]) {
  using E = typename C::Element;
  constexpr int kChunks = C::kColumns / 8;  // of 16 bytes, in a row
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
  auto* const out =
      static_cast<uint16_t*>(params.out) + first_column<C>(consumer) + lane % kChunks * 8;
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
  const bool has_lse = !C::kOneTile || consumer == 0;  // of warpgroups with the same rows the first
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
    for (int j = 0; j < C::kColumns / 2; ++j) r.o[j] *= scale[j / 2 % 2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t row = warp * 16 + lane / 4 + i * 8;
      const int32_t head = head_of(params, block * kBlockRows + row, kv_head);
      scale[i] = direct.has(row) ? add_sink(params, head, lse[i]) : 1.0f;
    }
  }
  if (direct.begin < direct.end) {
    if constexpr (!C::kOneTile)
      ptx::bar_sync(1 + consumer, 128);  // all its warps are done with the queries
    write_rows<C>(params, shared, direct, consumer, r, scale);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int32_t row = warp * 16 + lane / 4 + i * 8;
    if (!touched.has(row)) continue;
    if (direct.has(row)) {
      if (!has_lse || lane % 4 != 0 || params.lse == nullptr) continue;
      params.lse[shared.places[consumer][row].lse] = lse[i];
    } else {
      const int64_t slot = int64_t{ending.x} + row - touched.begin;
      auto* to = reinterpret_cast<float4*>(params.partials + slot * C::kHeadDim +
                                           first_column<C>(consumer));
#pragma unroll
      for (int j = 0; j < C::kColumns / 16; ++j) {
        const float* const o = &r.o[j * 8 + i * 2];
        __stcg(&to[j * 4 + lane % 4],
               make_float4(o[0] * scale[i], o[1] * scale[i], o[4] * scale[i], o[5] * scale[i]));
      }
      if (has_lse && lane % 4 == 0) __stcg(&partial_lse<C>(params, shared.start)[slot], lse[i]);
    }
  }
}

}  // namespace pando::cuda
