// What 03 and 04 share: a warpgroup's 64 packed rows against a tile of 64 tokens, on tensor cores.
//
// Three layouts meet here.
//
// Shared memory. A tile is 64 rows (of Q, or tokens of K or V) of 128 elements, as two halves of
// 64: a row of a half is 128 bytes, 8 chunks of 16. Chunk c of row r lies at place c xor (r mod 8),
// the 128-byte swizzle. Without it the 8 rows that a tensor core reads at a time would all come
// from the same 4 banks; with it they come from 32. The pattern repeats every 8 rows, 1024 bytes,
// and is taken from the address: a tile must begin at a multiple of 1024.
//
//            place   0  1  2  3  4  5  6  7
//   row 0    chunk   0  1  2  3  4  5  6  7
//   row 1            1  0  3  2  5  4  7  6
//   row 2            2  3  0  1  6  7  4  5
//   …                                          half 1 follows half 0, 8192 bytes on
//
// Matrix descriptors tell wgmma where an operand lies: address, swizzle, and two distances.
//                     the operand's        distance between     distance between      a step of 16
//                     contiguous direction 64-element halves    groups of 8 rows
//   Q, K  of Q K^T    the summed one       given by the step    1024                  +32 bytes
//   V     of P V      the other            8192                 1024                  +2048, 16
//   tokens
// A step along the summed direction of Q and K is 32 bytes within a row, and after 4 of them the
// next half: the hardware swizzles the address that comes out, so a descriptor may point into a
// row.
//
// Registers. Of a product's 64 rows warp w holds 16; a thread holds rows lane / 4 and lane / 4 + 8
// of these, and of each 8 columns the two at lane % 4 * 2:
//   s[4 * g + 2 * i + e]   is row 16 * w + lane / 4 + 8 * i, column 8 * g + lane % 4 * 2 + e
// Rounded to bf16 and packed in twos, this is how wgmma wants its first operand in registers: the
// weights of the first product go into the second one without leaving the thread.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/ptx/math.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/tile/mma.cuh"
#include "lab/lab.h"

namespace pando::lab {

inline constexpr int32_t kBlockRows = 64;
inline constexpr int32_t kTileTokens = 64;
inline constexpr int32_t kHalfBytes = 64 * 128;
inline constexpr int32_t kTileBytes = 2 * kHalfBytes;
inline constexpr float kScaleLog2 = kScale * 1.4426950408889634f;  // exp(x) is exp2(x * log2 e)

/// A thread's part of 64 rows: two rows, of each every fourth pair of dimensions.
struct RowState {
  float o[kHeadDim / 2] = {};
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  ///< over this thread's columns
};
using Scores = float[kTileTokens / 2];
using Weights = uint32_t[kTileTokens / 16][4];

/// Where chunk `chunk` (0 to 15) of a tile's row begins, in bytes.
__device__ inline int32_t swizzled(int32_t row, int32_t chunk) {
  return chunk / 8 * kHalfBytes + row * 128 + (chunk % 8 ^ row % 8) * 16;
}

/// Fills a tile by 128 threads with plain loads and stores. `row_of(row)` is where a row begins in
/// global memory, null for zeros. wgmma must not read it before fence.proxy.async and a barrier.
template <class RowOf>
__device__ void load_tile(uint8_t* s_tile, const RowOf& row_of) {
#pragma unroll
  for (int i = 0; i < kBlockRows / 8; ++i) {
    const int32_t row = i * 8 + threadIdx.x / 16;  // 16 threads read the 256 bytes of a row
    const int32_t chunk = threadIdx.x % 16;
    const auto* from = reinterpret_cast<const uint4*>(row_of(row));
    *reinterpret_cast<uint4*>(s_tile + swizzled(row, chunk)) =
        from != nullptr ? from[chunk] : make_uint4(0, 0, 0, 0);
  }
}

/// The queries of packed rows [first, first + 64) of a kv head; zeros for rows that are not there.
__device__ inline void load_queries(uint8_t* s_q, const Batch& batch, int32_t first,
                                    int32_t kv_head) {
  load_tile(s_q, [&](int32_t row) -> const Element* {
    if (first + row >= batch.packed_rows()) return nullptr;
    return batch.q + batch.row_index(first + row, kv_head) * kHeadDim;
  });
}

__device__ inline uint64_t descriptor_of(const uint8_t* s_tile, int32_t between_halves) {
  return ptx::matrix_descriptor(ptx::shared_address(s_tile), between_halves, 1024);
}

/// S = Q K^T. wgmma runs on its own: `fence` says that what it reads is in place, `commit_group`
/// and `wait_group` that it is done.
__device__ inline void multiply_scores(Scores& s, const uint8_t* s_q, const uint8_t* s_k) {
  constexpr int32_t kUnused = 16;
  const uint64_t queries = descriptor_of(s_q, kUnused);
  const uint64_t keys = descriptor_of(s_k, kUnused);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    const uint64_t offset = (step / 4 * kHalfBytes + step % 4 * 32) >> 4;  // addresses count 16s
    cuda::mma<kTileTokens, false, Element>(s, queries + offset, keys + offset, step > 0);
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
}

/// O += P V.
__device__ inline void multiply_output(RowState& r, const Weights& p, const uint8_t* s_v) {
  const uint64_t values = descriptor_of(s_v, kHalfBytes);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kTileTokens / 16; ++step) {
    cuda::mma<kHeadDim, true, Element>(r.o, p[step], values + step * (2048 >> 4), true);
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
}

/// Largest or total of a row's four threads, by two exchanges.
template <class Op>
__device__ float over_row(float x, const Op& op) {
  x = op(x, __shfl_xor_sync(~0u, x, 1));
  return op(x, __shfl_xor_sync(~0u, x, 2));
}

/// Scores to weights exp2(scale_log2 * (s - top)), and what was summed up to the new top. Columns
/// from `valid` on hold no token: their weight is 0, whatever the product was.
__device__ inline void softmax(Scores& s, RowState& r, int32_t valid) {
  const int32_t column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float top = r.top[i];
#pragma unroll
    for (int g = 0; g < kTileTokens / 8; ++g) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[4 * g + 2 * i + e];
        if (8 * g + column + e >= valid) x = -INFINITY;
        top = fmaxf(top, x);
      }
    }
    top = over_row(top, [](float a, float b) { return fmaxf(a, b); });
    const float base = top == -INFINITY ? 0.0f : top;  // -inf - -inf would be NaN
    const float shrink = ptx::ex2((r.top[i] - base) * kScaleLog2);
    r.top[i] = top;
    r.sum[i] *= shrink;
#pragma unroll
    for (int g = 0; g < kTileTokens / 8; ++g) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[4 * g + 2 * i + e];
        x = ptx::ex2((x - base) * kScaleLog2);
        r.sum[i] += x;
      }
    }
#pragma unroll
    for (int g = 0; g < kHeadDim / 8; ++g) {
      r.o[4 * g + 2 * i] *= shrink;
      r.o[4 * g + 2 * i + 1] *= shrink;
    }
  }
}

/// Weights of 16 tokens a step as the first operand of the second product.
__device__ inline void pack_weights(const Scores& s, Weights& p) {
#pragma unroll
  for (int j = 0; j < kTileTokens / 4; ++j) {
    p[j / 4][j % 4] = ptx::cvt_pack(s[2 * j], s[2 * j + 1], Element{});
  }
}

/// The rows' partials: o and lse over all tokens so far.
__device__ inline void write_partials(const Batch& batch, int32_t first, int32_t kv_head,
                                      const RowState& r) {
  const int32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = over_row(r.sum[i], [](float a, float b) { return a + b; });
    const int32_t packed = first + threadIdx.x / 32 * 16 + lane / 4 + 8 * i;
    if (packed >= batch.packed_rows()) continue;
    const int64_t index = batch.row_index(packed, kv_head);
    auto* const o = reinterpret_cast<float2*>(batch.partial_o + index * kHeadDim);
    const float scale = sum > 0 ? 1 / sum : 0.0f;
#pragma unroll
    for (int g = 0; g < kHeadDim / 8; ++g) {
      o[4 * g + lane % 4] = make_float2(r.o[4 * g + 2 * i] * scale, r.o[4 * g + 2 * i + 1] * scale);
    }
    if (lane % 4 == 0) {
      batch.partial_lse[index] = sum > 0 ? r.top[i] * kScale + logf(sum) : -INFINITY;
    }
  }
}

}  // namespace pando::lab
