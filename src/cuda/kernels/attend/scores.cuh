// A tile in a consumer warpgroup's registers: scores, the mask rule, online softmax, output.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "core/soft_cap.h"
#include "cuda/kernels/attend/config.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/tile/mma.cuh"

namespace pando::cuda {

/// AttendParams::scale_log2 times the scale of fp8 K at a unit's kv head; nothing where all units
/// have the same.
template <bool kOwn>
struct UnitScale {};
template <>
struct UnitScale<true> {
  float scale_log2;
};

/// A warpgroup's 64 rows. A thread holds rows `lane / 4` and `lane / 4 + 8` of its warp's 16.
template <class C>
struct RowState : UnitScale<C::kFp8 && !C::kCapped> {
  float o[C::kColumns / 2];
  float top[2], sum[2];
  int32_t visible_begin[2], visible_end[2];
};

/// AttendParams::scale_log2, at the unit's kv head.
template <class C>
__device__ __forceinline__ float scale_log2(const AttendParams& params, const RowState<C>& r) {
  if constexpr (C::kFp8 && !C::kCapped) {
    return r.scale_log2;
  } else {
    return params.scale_log2;
  }
}

/// Scores of a thread against N slots: [4 * granule + 2 * i + e] is row lane / 4 + 8 * i.
template <int N>
using Scores = float[N / 2];
/// Weights as the A operand of the second product.
template <int N>
using Weights = uint32_t[N / 16][4];

/// S = Q K^T of N slots from `first` on; asynchronous.
template <class C, int N>
__device__ __forceinline__ void start_scores(Scores<N>& s, const uint8_t* q, const uint8_t* k,
                                             int32_t first) {
  const uint64_t queries = ptx::matrix_descriptor(ptx::shared_address(q), 16, 1024);
  const uint64_t keys =
      ptx::matrix_descriptor(ptx::shared_address(k + C::granule_of(first)), 16, C::kGranuleBytes);
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const uint32_t q_offset = step / 4 * kBlockRows * 128 + step % 4 * 32;
    const uint32_t k_offset = step / 4 * C::kHalfBytes + step % 4 * 32;
    mma<N, false, typename C::Element>(s, ptx::advance(queries, q_offset),
                                       ptx::advance(keys, k_offset), step > 0);
  }
}

/// O += P V of N slots from `first` on; asynchronous.
template <class C, int N>
__device__ __forceinline__ void start_output(RowState<C>& r, const Weights<N>& p, const uint8_t* v,
                                             int32_t first) {
  const uint64_t descriptor = ptx::matrix_descriptor(ptx::shared_address(v + C::granule_of(first)),
                                                     C::kHalfBytes, C::kGranuleBytes);
#pragma unroll
  for (int step = 0; step < N / 16; ++step) {
    mma<C::kHeadDim, true, typename C::Element>(
        r.o, p[step], ptx::advance(descriptor, C::granule_of(step * 16)), true);
  }
}

/// What must be remembered of a tile until its V has come: one bit for each slot without a token.
template <int N>
struct Holes {
  bool any = false;
  uint32_t slots[(N + 31) / 32] = {};
};

/// Slots of V without a token have weight 0, but 0 * NaN is NaN: they are zeroed.
template <class C, int N>
__device__ __forceinline__ void fill_holes(uint8_t* v, int32_t first, const Holes<N>& holes,
                                           int32_t named_barrier) {
  constexpr int kAtOnce = 16;  // slots, 8 threads for each
  if (C::kParts > 1 ? (holes.slots[0] | holes.slots[N / 32 - 1]) == 0 : !holes.any) return;
  const uint32_t thread = this_thread<C>();
  v += C::granule_of(first) + thread % 128 / 64 * C::kGranuleBytes + thread % 64 * 16;
#pragma unroll
  for (int slot = 0; slot < N; slot += kAtOnce) {
    const int32_t mine = slot + thread % 128 / 8;
    if ((holes.slots[slot / 32] >> mine % 32 & 1) == 0) continue;
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      uint8_t* const to = v + C::granule_of(slot) + half * C::kHalfBytes;
      *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    }
  }
  ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
  ptx::bar_sync(named_barrier, 128);
}

/// tanh(x) for |x| < kTanhNear. Never contracted with what x is: it has the same bits everywhere.
__device__ __forceinline__ float tanh_near(float x) {
  const float square = __fmul_rn(x, x);
  float p = kTanhNear5;
  p = __fmaf_rn(p, square, kTanhNear4);
  p = __fmaf_rn(p, square, kTanhNear3);
  p = __fmaf_rn(p, square, kTanhNear2);
  p = __fmaf_rn(p, square, kTanhNear1);
  return __fmaf_rn(__fmul_rn(p, square), x, x);
}

/// tanh(x); tanh.approx would miss a score by 0.02 under a soft cap of 50.
__device__ __forceinline__ float tanh_of(float x) {
  const float e = ptx::ex2(fabsf(x) * (-2 * kLog2E));
  const float far = (1 - e) * ptx::rcp(1 + e);
  return fabsf(x) < kTanhNear ? tanh_near(x) : copysignf(far, x);
}

/// A soft cap, before the mask: what scores are scaled by afterwards is the cap. Few scores come
/// near the cap; the others are spared the special function unit.
template <class C, int N>
__device__ __forceinline__ void cap_scores(const AttendParams& params, const SharedPlan<C>& shared,
                                           int consumer, Scores<N>& s) {
  constexpr int kAtOnce = 8;  // more would take more registers than there are
  if constexpr (C::kCapped) {
    float into_cap = params.into_cap;
    if constexpr (C::kFp8) into_cap = shared.fp8.into_cap[consumer];
#pragma unroll
    for (int first = 0; first < N / 2; first += kAtOnce) {
      float most = 0;
#pragma unroll
      for (int j = first; j < first + kAtOnce; ++j) {
        s[j] = __fmul_rn(s[j], into_cap);
        most = fmaxf(most, fabsf(s[j]));
      }
      if (__any_sync(~0u, most >= kTanhNear)) {
#pragma unroll
        for (int j = first; j < first + kAtOnce; ++j) s[j] = tanh_of(s[j]);
      } else {
#pragma unroll
        for (int j = first; j < first + kAtOnce; ++j) s[j] = tanh_near(s[j]);
      }
    }
  }
}

/// Of the granules `which` of a warpgroup's slots, as bits, leaves in the bits of a thread's rows
/// what the holes of these rows do not hide.
template <class C>
__device__ __forceinline__ void hide_holes(const SharedPlan<C>& shared, const int32_t* positions,
                                           int consumer, uint32_t which, uint32_t (&seen)[2]) {
  const uint32_t thread = this_thread<C>();
  const int lane = thread % 32;
  const TreeRow* const rows = &shared.tree_rows[consumer][thread / 32 % 4 * 16 + lane / 4];
#pragma unroll 1
  for (; which != 0; which &= which - 1) {
    const int g = __ffs(which) - 1;
    const int32_t position = positions[g] + lane % 4 * 2;
    for (int i = 0; i < 2; ++i) {
      const uint32_t two = rows[i * 8].sees_two(position);
      seen[i] &= ~((two ^ 3) << 2 * g);
    }
  }
}

/// The one mask rule, on the scores of N slots from `first` on, of the warp's 16 rows from
/// `warp_row` on. What it says is found before `wait` is called for the scores.
template <class C, int N, class Wait>
__device__ __forceinline__ Holes<N> mask_scores(Scores<N>& s, const RowState<C>& r,
                                                const SharedPlan<C>& shared, const TileInfo& info,
                                                int consumer, int32_t first, int32_t warp_row,
                                                Wait wait) {
  const uint32_t state = info.state[N == kTileTokens ? 2 : first / kHalfTokens];
  Holes<N> holes;
  if (state == TileInfo::kFull) {
    wait();
    return holes;
  }
  const uint32_t thread = this_thread<C>();
  const int lane = thread % 32;
  const int32_t row = warp_row + lane / 4;
  const auto in_rows = [row](uint32_t rows, int i) {
    return row + i * 8 >= int32_t(rows & 255) && row + i * 8 < int32_t(rows >> 8 & 255);
  };
  if (state == TileInfo::kPlain) {  // a row sees all or nothing
    const uint32_t rows = info.rows[first / kGranule];
    const bool hidden[2] = {!in_rows(rows, 0), !in_rows(rows, 1)};
    wait();
#pragma unroll
    for (int j = 0; j < N / 2; ++j) {
      if (hidden[j / 2 % 2]) s[j] = -INFINITY;
    }
    return holes;
  }
  // One bit for each score of a row: the row sees the slot's token. Of a row's four lanes each
  // looks at every fourth granule, and all at what the others saw.
  uint32_t seen[2] = {0, 0};
  constexpr int kGranulesHere = N / kGranule;
  constexpr int kEach = (kGranulesHere + 3) / 4;
  uint32_t slots_seen[2] = {0, 0};  // one byte for each of the lane's granules
#pragma unroll 1
  for (int j = 0; j < kEach; ++j) {
    const int g = lane % 4 + j * 4;
    if (kGranulesHere < 4 && g >= kGranulesHere) continue;
    const uint32_t rows = info.rows[first / kGranule + g];
    const int32_t position = info.position[first / kGranule + g];
    const uint32_t held = rows >> Granule::kSlotsShift & Granule::kAllSlots;
    for (int i = 0; i < 2; ++i) {
      if (!in_rows(rows, i)) continue;
      int32_t begin = r.visible_begin[i], end = r.visible_end[i];
      if constexpr (C::kFewRegisters) {
        const RowSpan visible = shared.visible[consumer][thread / 32 % 4 * 16 + lane / 4 + i * 8];
        begin = visible.begin;
        end = visible.end;
      }
      // Of positions `position` + 0 to 7 those from `begin` on, and before `end`.
      const int32_t low = min(max(begin - position, 0), kGranule);
      const int32_t high = min(max(end - position, 0), kGranule);
      slots_seen[i] |= (held & ((1u << high) - 1) & ~((1u << low) - 1)) << 8 * j;
    }
  }
#pragma unroll 1
  for (int k = 0; k < 4 && k < kGranulesHere; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t theirs = __shfl_sync(~0u, slots_seen[i], (lane & ~3) + k);
      seen[i] |= (theirs >> lane % 4 * 2 & 0x03030303) << 2 * k;
    }
  }
  if (!C::kOneTile && shared.start.tree_rows_at != 0) {
    // Granules that some row of the warp may see.
    const uint32_t lane_rows = info.rows[first / kGranule + lane % (N / kGranule)];
    const uint32_t which =
        __ballot_sync(~0u, lane < N / kGranule && int32_t(lane_rows & 255) < warp_row + 16 &&
                               int32_t(lane_rows >> 8 & 255) > warp_row);
    hide_holes<C>(shared, &info.position[first / kGranule], consumer, which, seen);
  }
  holes.any = (state & TileInfo::kHoles) != 0;
  if (holes.any) {
#pragma unroll
    for (int i = 0; i < (N + 31) / 32; ++i) {
      const uint32_t rows = info.rows[(first + i * 32 + lane % N) / kGranule];
      holes.slots[i] =
          __ballot_sync(~0u, (rows >> (Granule::kSlotsShift + lane % kGranule) & 1) == 0);
    }
  }
  wait();
#pragma unroll
  for (int g = 0; g < N / kGranule; ++g) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint32_t bit = 1u << (2 * g + e);
      if ((seen[0] & bit) == 0) s[g * 4 + e] = -INFINITY;
      if ((seen[1] & bit) == 0) s[g * 4 + 2 + e] = -INFINITY;
    }
  }
  return holes;
}

/// Scores to weights exp2(scale_log2 * (s - top)); updates top and sum. Returns whether any row of
/// the warp moved its top; then `alpha` says by which factor what was accumulated must shrink.
///
/// Any top near the largest score will do: it moves only when weights could exceed 2^8, so that
/// the sums need not be rescaled at every tile.
template <class C, int N>
__device__ __forceinline__ bool softmax(const AttendParams& params, Scores<N>& s, RowState<C>& r,
                                        float (&alpha)[2]) {
  constexpr float kSlack = 8;
  const float scale = scale_log2(params, r);
  float tops[2][2], base[2];  // two chains of maxima for each row: one would wait for itself
#pragma unroll
  for (int e = 0; e < 4; ++e) tops[e / 2][e % 2] = s[e];
#pragma unroll
  for (int j = 4; j < N / 2; ++j) {
    float& top = tops[j / 2 % 2][j % 2];
    top = fmaxf(top, s[j]);
  }
  bool mine = false;  // exceeds what a row allows
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    tops[i][0] = fmaxf(tops[i][0], tops[i][1]);
    mine |= (tops[i][0] - r.top[i]) * scale > kSlack;
  }
  // Rare after the first tiles: the lanes of a row need not even agree on its largest score.
  const bool moved = __any_sync(~0u, mine);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    alpha[i] = 1;
    if (moved) {
      float top = tops[i][0];
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const bool moves = (top - r.top[i]) * scale > kSlack;
      if (moves) {
        // Not contracted: where top stays, the factor must be exactly 1.
        alpha[i] = ptx::ex2(__fmul_rn(r.top[i], scale) - __fmul_rn(top, scale));
        r.top[i] = top;
        r.sum[i] *= alpha[i];
      }
    }
    base[i] = r.top[i] == -INFINITY ? 0.0f : __fmul_rn(r.top[i], scale);
  }
#pragma unroll
  for (int j = 0; j < N / 2; ++j) {
    s[j] = ptx::ex2(s[j] * scale - base[j / 2 % 2]);
    r.sum[j / 2 % 2] += s[j];
  }
  return moved;
}

/// Weights as elements E.
template <class E, int N>
__device__ __forceinline__ void pack_weights(const Scores<N>& s, Weights<N>& p) {
#pragma unroll
  for (int step = 0; step < N / 16; ++step) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      p[step][j] = ptx::cvt_pack(s[step * 8 + j * 2], s[step * 8 + j * 2 + 1], E{});
  }
}

/// The sums of rows, of which four lanes have a part each.
template <class C>
__device__ __forceinline__ void reduce_sums(RowState<C>& r) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    r.sum[i] += __shfl_xor_sync(~0u, r.sum[i], 1);
    r.sum[i] += __shfl_xor_sync(~0u, r.sum[i], 2);
  }
}

template <class C>
__device__ __forceinline__ void rescale(RowState<C>& r, const float (&alpha)[2]) {
#pragma unroll
  for (int j = 0; j < C::kColumns / 2; ++j) r.o[j] *= alpha[j / 2 % 2];
}

}  // namespace pando::cuda
