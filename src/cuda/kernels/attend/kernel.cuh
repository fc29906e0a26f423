// The attend kernel, for a static list of units in one persistent launch.
//
//   s_ij = scale * q_i . k_j      o_i = sum_j exp(s_ij - lse_i) v_j      lse_i = ln sum_j exp(s_ij)
//
// over the positions j that row i sees, by the online softmax of FlashAttention (Dao et al., 2022).
// Roles: warpgroup 0 produces (warp 0 loads K and V, warps 1-3 query rows), the others consume.
#pragma once

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/merge.cuh"
#include "cuda/kernels/attend/producer.cuh"
#include "cuda/kernels/attend/tiles.cuh"
#include "cuda/ptx/setmaxnreg.cuh"

namespace pando::cuda {

/// Writes a block's result, or its partial.
template <class C>
__device__ void finish_block(const AttendParams& params, const Ending& ending, int32_t block,
                             int32_t kv_head, RowState<C>& r) {
  using E = typename C::Element;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32 % 4;
  const int32_t rows = min(64, params.packed_rows - block * 64);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int32_t row = warp * 16 + lane / 4 + i * 8;
    if (row >= rows) continue;
    const float scale = r.sum[i] > 0 ? 1 / r.sum[i] : 0.0f;
    const float lse = r.sum[i] > 0
                          ? (r.top[i] * params.scale_log2 + log2f(r.sum[i])) * 0.6931471805599453f
                          : -INFINITY;
    if (ending.sources == 1) {
      const RowPlace place = place_of(params, block * 64 + row, kv_head);
      auto* out = reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(params.out) + place.out);
#pragma unroll
      for (int j = 0; j < C::kHeadDim / 8; ++j) {
        out[j * 4 + lane % 4] =
            ptx::cvt_pack(r.o[j * 4 + i * 2] * scale, r.o[j * 4 + i * 2 + 1] * scale, E{});
      }
      if (lane % 4 == 0 && params.lse != nullptr) params.lse[place.lse] = lse;
    } else {
      const int64_t slot = ending.partial + row;
      auto* to = reinterpret_cast<float2*>(params.partial_o + slot * C::kHeadDim);
#pragma unroll
      for (int j = 0; j < C::kHeadDim / 8; ++j) {
        __stcg(&to[j * 4 + lane % 4],
               make_float2(r.o[j * 4 + i * 2] * scale, r.o[j * 4 + i * 2 + 1] * scale));
      }
      if (lane % 4 == 0) __stcg(&params.partial_lse[slot], lse);
    }
  }
}

/// Both warpgroups attended the same rows to different tokens: the second hands its state over.
template <class C>
__device__ void join_halves(RowState<C>& r, SharedPlan<C>& shared, int consumer, int32_t rows) {
  constexpr int kReady = 3, kFree = 4;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32 % 4;
  float* exchange = shared.exchange;
  if (consumer == 1) {
    ptx::bar_sync(kFree, 256);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp * 16 + lane / 4 + i * 8;
      if (row < rows) {
        auto* to = reinterpret_cast<float2*>(exchange + row * C::kHeadDim);
#pragma unroll
        for (int j = 0; j < C::kHeadDim / 8; ++j) {
          to[j * 4 + lane % 4] = make_float2(r.o[j * 4 + i * 2], r.o[j * 4 + i * 2 + 1]);
        }
        if (lane % 4 == 0) {
          exchange[64 * C::kHeadDim + row] = r.top[i];
          exchange[64 * C::kHeadDim + 64 + row] = r.sum[i];
        }
      }
    }
    ptx::bar_arrive(kReady, 256);
    return;
  }
  ptx::bar_arrive(kFree, 256);
  ptx::bar_sync(kReady, 256);
}

template <class C>
__device__ void absorb(const AttendParams& params, RowState<C>& r, SharedPlan<C>& shared,
                       int32_t rows) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32 % 4;
  const float* exchange = shared.exchange;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp * 16 + lane / 4 + i * 8;
    if (row >= rows) continue;
    const float top = exchange[64 * C::kHeadDim + row];
    const float sum = exchange[64 * C::kHeadDim + 64 + row];
    const float both = fmaxf(r.top[i], top);
    const float base = both == -INFINITY ? 0.0f : __fmul_rn(both, params.scale_log2);
    const float a = ptx::ex2(__fmul_rn(r.top[i], params.scale_log2) - base);
    const float b = ptx::ex2(__fmul_rn(top, params.scale_log2) - base);
    const auto* from = reinterpret_cast<const float2*>(exchange + row * C::kHeadDim);
#pragma unroll
    for (int j = 0; j < C::kHeadDim / 8; ++j) {
      const float2 o = from[j * 4 + lane % 4];
      r.o[j * 4 + i * 2] = r.o[j * 4 + i * 2] * a + o.x * b;
      r.o[j * 4 + i * 2 + 1] = r.o[j * 4 + i * 2 + 1] * a + o.y * b;
    }
    r.top[i] = both;
    r.sum[i] = r.sum[i] * a + sum * b;
  }
}

template <class C>
__device__ void reduce_sums(RowState<C>& r) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    r.sum[i] += __shfl_xor_sync(~0u, r.sum[i], 1);
    r.sum[i] += __shfl_xor_sync(~0u, r.sum[i], 2);
  }
}

constexpr int kAllConsumers = 5;

template <class C>
__device__ void consume(const AttendParams& params, SharedPlan<C>& shared, int consumer) {
  RingCursor<C::kSlots> cursor(shared.ring);
  RingCursor<1> q_cursor(shared.q_ring);
  const int32_t named_barrier = 1 + consumer;
  RowState<C> r;
  const int32_t last = params.cta_begin[blockIdx.x + 1];
  for (int32_t u = params.cta_begin[blockIdx.x]; u < last; ++u) {
    q_cursor.wait_full();
    const Unit& unit = shared.unit[u & 1];
    const bool wide = unit.blocks == 2;
    const int32_t half = wide ? consumer : 0;
    load_rows<C>(shared, half * 64, r);
    __syncwarp();
    if (threadIdx.x % 32 == 0) q_cursor.release();
    q_cursor.advance();
    const int32_t tiles = (unit.slot_end - unit.slot_begin + C::kTileTokens - 1) / C::kTileTokens;
    if (wide) {
      attend_tiles<C, 128>(params, r, cursor, shared, tiles, 0, half * 64, named_barrier);
    } else {
      attend_tiles<C, 64>(params, r, cursor, shared, tiles, consumer * 64, 0, named_barrier);
    }
    reduce_sums<C>(r);
    if (!wide) {
      join_halves<C>(r, shared, consumer, 64);
      if (consumer == 1) continue;
      absorb<C>(params, r, shared, 64);
    }
    finish_block<C>(params, unit.ending[half], unit.block + half, unit.kv_head, r);
  }
  if (params.merges == 0) return;
  ptx::bar_sync(kAllConsumers, C::kConsumers * 128);
  if (threadIdx.x == 128) grid_barrier(params.grid_counter);
  ptx::bar_sync(kAllConsumers, C::kConsumers * 128);
  const int32_t warp = threadIdx.x / 32 - 4;
  merge_all<C>(params, blockIdx.x + gridDim.x * warp, gridDim.x * C::kConsumers * 4);
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    attend_kernel(const __grid_constant__ LaunchParams launch,
                  const __grid_constant__ TensorMaps maps) {
  extern __shared__ __align__(1024) uint8_t s_raw[];
  auto& shared = *reinterpret_cast<SharedPlan<C>*>(s_raw);
  const AttendParams params = resolve(launch, C::kHeadDim);
  const int group = threadIdx.x / 128;
  if (threadIdx.x == 32) {
    ptx::prefetch_tensormap(&maps.k_big);
    ptx::prefetch_tensormap(&maps.v_big);
    ptx::prefetch_tensormap(&maps.k_small);
    ptx::prefetch_tensormap(&maps.v_small);
  }
  if (threadIdx.x == 0) {
    shared.ring.init(1, C::kConsumers * 4);
    shared.q_ring.init(96, C::kConsumers * 4);
    ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
  }
  __syncthreads();
  if (group == 0) {
    ptx::setmaxnreg_dec<40>();
    if (threadIdx.x < 32) {
      produce<C>(params, maps, shared);
    } else {
      fetch_queries<C>(params, shared);
    }
  } else {
    ptx::setmaxnreg_inc<232>();
    consume<C>(params, shared, group - 1);
  }
}

}  // namespace pando::cuda
