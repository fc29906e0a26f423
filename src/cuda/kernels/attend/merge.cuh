// Merging partials: after a barrier over the grid, every warp merges its share of the rows.
#pragma once

#include <cstdint>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/ptx/math.cuh"

namespace pando::cuda {

/// A row's place in out and lse.
struct RowPlace {
  int64_t out, lse;
};
__device__ __forceinline__ RowPlace place_of(const AttendParams& params, int32_t packed,
                                             int32_t kv_head) {
  const int64_t q_row = __ldg(&params.rows[packed / params.group].q_row);
  const int32_t head = kv_head * params.group + packed % params.group;
  return {q_row * params.out_row_stride + head * params.out_head_stride,
          q_row * params.q_heads + head};
}

/// Waits until every thread block of the grid has come; all of them are resident. The arrivals add
/// up to the top bit, whose change lets all go: the counter serves grids of any size, any number of
/// times.
__device__ __forceinline__ void grid_barrier(uint32_t* counter) {
  constexpr uint32_t kTopBit = 1u << 31;
  __threadfence();
  const uint32_t before = atomicAdd(counter, blockIdx.x == 0 ? kTopBit - (gridDim.x - 1) : 1);
  while (((before ^ __ldcg(counter)) & kTopBit) == 0) {
  }
  __threadfence();
}

/// Merges the partials of one row; by one warp, which takes columns [32 * part, 32 * part + 32).
template <class C>
__device__ void merge_row(const AttendParams& params, const Merge& merge, int32_t row,
                          int32_t part) {
  const int lane = threadIdx.x % 32;
  float top = -INFINITY;
  for (int32_t i = lane; i < merge.sources; i += 32) {
    top = fmaxf(top, __ldcg(&params.partial_lse[merge.first + i * 64 + row]));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
  const float base = top == -INFINITY ? 0.0f : top;
  float o = 0, sum = 0;
#pragma unroll 8
  for (int32_t i = 0; i < merge.sources; ++i) {
    const int64_t slot = merge.first + i * 64 + row;
    const float weight = __expf(__ldcg(&params.partial_lse[slot]) - base);
    sum += weight;
    o += weight * __ldcg(&params.partial_o[slot * C::kHeadDim + part * 32 + lane]);
  }
  o *= sum > 0 ? 1 / sum : 0.0f;
  const RowPlace place = place_of(params, merge.block * 64 + row, merge.kv_head);
  const float next = __shfl_down_sync(~0u, o, 1);
  if (lane % 2 == 0) {
    auto* out = reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(params.out) + place.out);
    out[part * 16 + lane / 2] = ptx::cvt_pack(o, next, typename C::Element{});
  }
  if (part == 0 && lane == 0 && params.lse != nullptr)
    params.lse[place.lse] = sum > 0 ? top + logf(sum) : -INFINITY;
}

/// Merges the partials of four adjacent rows; by one warp, 4 columns a lane. Four sources are in
/// flight at once.
template <class C>
__device__ void merge_four_rows(const AttendParams& params, const Merge& merge, int32_t row) {
  static_assert(C::kHeadDim == 128);
  const int lane = threadIdx.x % 32;
  RowPlace places[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    places[r] =
        place_of(params, min(merge.block * 64 + row + r, params.packed_rows - 1), merge.kv_head);
  }
  float top[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float sum[4] = {};
  float o[4][4] = {};
  for (int32_t first = 0; first < merge.sources; first += 4) {
    float4 lse[4];
    float4 theirs[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      lse[i] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      if (first + i >= merge.sources) continue;
      const int64_t slot = merge.first + (first + i) * 64 + row;
      lse[i] = __ldcg(reinterpret_cast<const float4*>(&params.partial_lse[slot]));
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        theirs[i][r] = __ldcg(
            reinterpret_cast<const float4*>(params.partial_o + (slot + r) * C::kHeadDim) + lane);
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float next = top[r];
#pragma unroll
      for (int i = 0; i < 4; ++i) next = fmaxf(next, reinterpret_cast<const float*>(&lse[i])[r]);
      const float base = next == -INFINITY ? 0.0f : next;
      const float shrink = __expf(top[r] - base);
      top[r] = next;
      sum[r] *= shrink;
#pragma unroll
      for (int c = 0; c < 4; ++c) o[r][c] *= shrink;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first + i >= merge.sources) continue;
        const float weight = __expf(reinterpret_cast<const float*>(&lse[i])[r] - base);
        sum[r] += weight;
        o[r][0] += weight * theirs[i][r].x;
        o[r][1] += weight * theirs[i][r].y;
        o[r][2] += weight * theirs[i][r].z;
        o[r][3] += weight * theirs[i][r].w;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (merge.block * 64 + row + r >= params.packed_rows) break;
    const float scale = sum[r] > 0 ? 1 / sum[r] : 0.0f;
    auto* out = reinterpret_cast<uint2*>(static_cast<uint16_t*>(params.out) + places[r].out);
    out[lane] = make_uint2(ptx::cvt_pack(o[r][0] * scale, o[r][1] * scale, typename C::Element{}),
                           ptx::cvt_pack(o[r][2] * scale, o[r][3] * scale, typename C::Element{}));
    if (lane == 0 && params.lse != nullptr)
      params.lse[places[r].lse] = sum[r] > 0 ? top[r] + logf(sum[r]) : -INFINITY;
  }
}

/// Every warp of the grid takes its share of the merges: few rows are cut by columns too.
template <class C>
__device__ void merge_all(const AttendParams& params, int32_t warp, int32_t warps) {
  constexpr int kParts = C::kHeadDim / 32;
  if (params.merges * 64 <= warps) {
    for (int32_t job = warp; job < params.merges * 64 * kParts; job += warps) {
      const Merge merge = params.merge_list[job / kParts / 64];
      const int32_t row = job / kParts % 64;
      if (merge.block * 64 + row < params.packed_rows)
        merge_row<C>(params, merge, row, job % kParts);
    }
    return;
  }
  const auto merge_of = [&](int32_t job) {
    const int4 m = __ldg(
        reinterpret_cast<const int4*>(&params.merge_list[min(job, params.merges * 16 - 1) / 16]));
    return Merge{m.x, m.y, m.z, m.w};
  };
  Merge next = merge_of(warp);
  for (int32_t job = warp; job < params.merges * 16; job += warps) {
    const Merge merge = next;
    next = merge_of(job + warps);
    if (merge.block * 64 + job % 16 * 4 < params.packed_rows)
      merge_four_rows<C>(params, merge, job % 16 * 4);
  }
}

}  // namespace pando::cuda
