// What a consumer warpgroup does with tiles: scores, the mask rule, online softmax, output.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/tile/mma.cuh"

namespace pando::cuda {

/// A warpgroup's 64 rows. A thread holds rows `lane / 4` and `lane / 4 + 8` of its warp's 16.
template <class C>
struct RowState {
  uint32_t q[C::kHeadDim / 16][4];
  float o[C::kHeadDim / 2];
  float top[2], sum[2];
  int32_t visible_begin[2], visible_end[2];
};

template <class C>
__device__ void load_rows(SharedPlan<C>& shared, int32_t tile_row, RowState<C>& r) {
  constexpr int kChunks = C::kHeadDim / 8;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32 % 4;
  const int32_t first = tile_row + warp * 16;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int32_t row = first + lane / 4 + i * 8;
    r.top[i] = -INFINITY;
    r.sum[i] = 0;
    const int2 visible = shared.visible[row];
    r.visible_begin[i] = visible.x;
    r.visible_end[i] = visible.y;
  }
  // ldmatrix: lane l addresses row l % 16 of the warp's rows, chunk l / 16 of each pair.
  const int32_t row = first + lane % 16;
#pragma unroll
  for (int k = 0; k < C::kHeadDim / 16; ++k) {
    const int32_t chunk = 2 * k + lane / 16;
    ptx::ldmatrix_x4(r.q[k], shared_address(shared.q + (row * kChunks + (chunk ^ (row & 7))) * 16));
  }
#pragma unroll
  for (int d = 0; d < C::kHeadDim / 2; ++d) r.o[d] = 0;
}

/// What a thread must remember of a tile until its V has come.
struct TileNotes {
  bool holes;    ///< some slot of the tile holds no token
  bool my_hole;  ///< the slot that this thread looks after does not
};

/// S = Q K^T of N slots from `first` on; asynchronous.
template <class C, int N>
__device__ __forceinline__ void start_scores(float (&s)[N / 2], const RowState<C>& r,
                                             const uint8_t* k, int32_t first) {
  const uint64_t descriptor = ptx::matrix_descriptor(shared_address(k + first * 128), 16, 1024);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const uint64_t offset = (step / 4 * C::kHalfBytes + step % 4 * 32) >> 4;
    mma<N, false, typename C::Element>(s, r.q[step], descriptor + offset, step > 0);
  }
  ptx::wgmma_commit_group();
}

/// O += P V; asynchronous. Slots of V without a token have weight 0 but must be finite: they are
/// zeroed first.
template <class C, int N>
__device__ __forceinline__ void start_output(RowState<C>& r, const uint32_t (&p)[N / 16][4],
                                             uint8_t* v, int32_t first, const TileNotes& notes,
                                             int32_t named_barrier) {
  if (notes.holes) {
    if (notes.my_hole) {
#pragma unroll
      for (int half = 0; half < C::kHalves; ++half) {
        auto* to =
            reinterpret_cast<uint4*>(v + half * C::kHalfBytes + (first + threadIdx.x % 128) * 128);
#pragma unroll
        for (int j = 0; j < 8; ++j) to[j] = make_uint4(0, 0, 0, 0);
      }
    }
    ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
    ptx::bar_sync(named_barrier, 128);
  }
  const uint64_t descriptor =
      ptx::matrix_descriptor(shared_address(v + first * 128), C::kHalfBytes, 1024);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < N / 16; ++step) {
    mma<C::kHeadDim, true, typename C::Element>(r.o, p[step], descriptor + step * (2048 >> 4),
                                                true);
  }
  ptx::wgmma_commit_group();
}

/// The one mask rule, on the scores of a tile.
template <class C, int N>
__device__ __forceinline__ TileNotes mask_scores(float (&s)[N / 2], const RowState<C>& r,
                                                 const TileInfo<C>& info, int32_t first,
                                                 int32_t tile_row) {
  const int lane = threadIdx.x % 32;
  const int32_t masked = info.masked;
  TileNotes notes{info.holes != 0, false};
  if (masked == 0) return notes;
  const int32_t row = tile_row + threadIdx.x / 32 % 4 * 16 + lane / 4;
  if (masked == 1) {
    const uint32_t rows = info.rows[0];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (row + i * 8 >= int32_t(rows & 255) && row + i * 8 < int32_t(rows >> 8 & 255)) continue;
#pragma unroll
      for (int g = 0; g < N / 8; ++g) s[g * 4 + i * 2] = s[g * 4 + i * 2 + 1] = -INFINITY;
    }
    return notes;
  }
  const int32_t column = lane % 4 * 2;
#pragma unroll
  for (int g = 0; g < N / 8; ++g) {
    const uint32_t rows = info.rows[first / 8 + g];
    const int32_t position = info.position[first / 8 + g] + column;
    const int32_t row_begin = rows & 255, row_end = rows >> 8 & 255, valid = rows >> 16;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool sees = row + i * 8 >= row_begin && row + i * 8 < row_end;
      if (!sees || column >= valid || position < r.visible_begin[i] || position >= r.visible_end[i])
        s[g * 4 + i * 2] = -INFINITY;
      if (!sees || column + 1 >= valid || position + 1 < r.visible_begin[i] ||
          position + 1 >= r.visible_end[i])
        s[g * 4 + i * 2 + 1] = -INFINITY;
    }
  }
  const int32_t slot = first + threadIdx.x % 128;
  notes.my_hole =
      notes.holes && threadIdx.x % 128 < N && slot % 8 >= int32_t(info.rows[slot / 8 % 16] >> 16);
  return notes;
}

/// Scores to weights exp2(scale_log2 * (s - top)); updates top and sum, and says by which factor
/// what was accumulated before must shrink.
template <class C, int N>
__device__ __forceinline__ void softmax(const AttendParams& params, float (&s)[N / 2],
                                        RowState<C>& r, float (&alpha)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float top = r.top[i];
#pragma unroll
    for (int j = 0; j < N / 8; ++j) top = fmaxf(top, fmaxf(s[j * 4 + i * 2], s[j * 4 + i * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    const float base = top == -INFINITY ? 0.0f : __fmul_rn(top, params.scale_log2);
    // Not contracted: where top stays, the factor must be exactly 1.
    alpha[i] = ptx::ex2(__fmul_rn(r.top[i], params.scale_log2) - base);
    r.top[i] = top;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[j * 4 + i * 2 + e];
        x = ptx::ex2(x * params.scale_log2 - base);
        sum += x;
      }
    }
    r.sum[i] = r.sum[i] * alpha[i] + sum;
  }
}

template <class C, int N>
__device__ __forceinline__ void pack_weights(const float (&s)[N / 2], uint32_t (&p)[N / 16][4]) {
  using E = typename C::Element;
#pragma unroll
  for (int step = 0; step < N / 16; ++step) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      p[step][j] = ptx::cvt_pack(s[step * 8 + j * 2], s[step * 8 + j * 2 + 1], E{});
  }
}

/// All tiles of a unit, of which this warpgroup takes N slots from `first` on. The scores of a tile
/// are computed while the output of the tile before accumulates.
template <class C, int N>
__device__ __forceinline__ void attend_tiles(const AttendParams& params, RowState<C>& r,
                                             RingCursor<C::kSlots>& cursor, SharedPlan<C>& shared,
                                             int32_t tiles, int32_t first, int32_t tile_row,
                                             int32_t named_barrier) {
  const bool leader = threadIdx.x % 32 == 0;
  float s[N / 2];
  uint32_t p[N / 16][4];
  float alpha[2];
  cursor.wait_full();
  start_scores<C, N>(s, r, shared.slots[cursor.stage()], first);
  ptx::wgmma_wait_group<0>();
  TileNotes notes = mask_scores<C, N>(s, r, shared.info[cursor.stage()], first, tile_row);
  __syncwarp();
  if (leader) cursor.release();
  cursor.advance();
  softmax<C, N>(params, s, r, alpha);
  pack_weights<C, N>(s, p);
#pragma unroll 1
  for (int32_t tile = 1; tile < tiles; ++tile) {
    RingCursor<C::kSlots> v_cursor = cursor;
    cursor.advance();
    cursor.wait_full();
    start_scores<C, N>(s, r, shared.slots[cursor.stage()], first);
    v_cursor.wait_full();
    start_output<C, N>(r, p, shared.slots[v_cursor.stage()], first, notes, named_barrier);
    ptx::wgmma_wait_group<1>();
    notes = mask_scores<C, N>(s, r, shared.info[cursor.stage()], first, tile_row);
    __syncwarp();
    if (leader) cursor.release();
    cursor.advance();
    softmax<C, N>(params, s, r, alpha);
    ptx::wgmma_wait_group<0>();
    if (leader) v_cursor.release();
    if (__any_sync(~0u, alpha[0] != 1.0f || alpha[1] != 1.0f)) {
#pragma unroll
      for (int j = 0; j < C::kHeadDim / 2; ++j) r.o[j] *= alpha[j / 2 % 2];
    }
    pack_weights<C, N>(s, p);
  }
  cursor.wait_full();
  start_output<C, N>(r, p, shared.slots[cursor.stage()], first, notes, named_barrier);
  ptx::wgmma_wait_group<0>();
  __syncwarp();
  if (leader) cursor.release();
  cursor.advance();
}

}  // namespace pando::cuda
