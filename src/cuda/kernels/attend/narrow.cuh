// Narrow units: fp8, and few rows. wgmma would multiply 64 rows whatever there is, and reads K and
// V from shared memory, where fp8 must first be converted to: for few rows that takes longer than
// memory does. Here each consumer warp attends all rows to every eighth 16 slots, by itself: K and
// V go from the loaders' slots to registers, become fp16 there, and are operands of mma.sync. At
// the unit's end the warps put together what they have.
//
// Lane 4 * g + t, as mma.sync counts them. The order in which a row's dimensions are multiplied is
// free as long as Q and K have the same: lane t takes dimensions [32 t, 32 t + 32), 16 bytes of a
// token's K at once. Of V it takes those of four tokens, [16 g, 16 g + 16).
#pragma once

#include <cstdint>
#include <cuda/ptx>
#include <type_traits>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/convert.cuh"
#include "cuda/kernels/attend/merge_rows.cuh"
#include "cuda/kernels/attend/scores.cuh"
#include "cuda/kernels/attend/tiles.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/mma.cuh"

namespace pando::cuda {

inline constexpr int kNarrowSlots = 16;  ///< that a warp takes of a tile

/// Q of a narrow unit, as the A operand, in fp16.
template <class E>
struct NarrowQueries {
  static constexpr int kSteps = 8;  ///< of 16 dimensions
  /// bf16 becomes fp16 by a power of two for each row that brings its largest element to 2^14: what
  /// is then too small for fp16 is 2^-38 of that.
  static constexpr bool kScaled = !std::is_same_v<E, __half>;

  uint32_t steps[kSteps][4];
  float back[2] = {1, 1};  ///< of rows g and g + 8: from scores to those of Q itself

  /// Eight dimensions of a row, from 32 t + 8 * `word` on.
  __device__ __forceinline__ void set(int row, int word, uint4 eight) {
    steps[word * 2][row] = eight.x;
    steps[word * 2][2 + row] = eight.y;
    steps[word * 2 + 1][row] = eight.z;
    steps[word * 2 + 1][2 + row] = eight.w;
  }
  /// To fp16, when all are set.
  __device__ __forceinline__ void convert() {
    if constexpr (!kScaled) return;
    const auto number = [](uint32_t bits) { return __int_as_float(static_cast<int32_t>(bits)); };
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      uint32_t largest = 0;  // absolute values are ordered as their bits are
#pragma unroll
      for (int i = 0; i < 2 * kSteps; ++i) {
        const uint32_t two = steps[i / 2][i % 2 * 2 + row];
        largest = max(largest, max(two >> 16 & 0x7fff, two & 0x7fff));
      }
      largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = max(largest, __shfl_xor_sync(~0u, largest, 2));
      constexpr uint32_t kBias = 127, kMost = 253;  // its inverse is a normal number too
      const uint32_t exponent = min(2 * kBias + 14 - (largest >> 7), kMost);
      const float factor = number(exponent << 23);
      back[row] = number((2 * kBias - exponent) << 23);
#pragma unroll
      for (int i = 0; i < 2 * kSteps; ++i) {
        uint32_t& two = steps[i / 2][i % 2 * 2 + row];
        two =
            ptx::cvt_pack(number(two << 16) * factor, number(two & 0xffff0000) * factor, __half{});
      }
    }
  }
};

/// Opens a unit: its queries, what its rows see, and where the two rows go that this warp puts
/// together at the end: row `warp` + 8 * i of the unit in every lane with `lane` % 2 == i.
template <class C>
__device__ __forceinline__ RowPlace open_narrow(const AttendParams& params, const Unit& unit,
                                                bool first_unit, int warp, SharedPlan<C>& shared,
                                                RowState<C>& r,
                                                NarrowQueries<typename C::Element>& q) {
  constexpr int kWords = C::kHeadDim / 32;
  const Start& start = shared.start;
  const Row* const rows = section<Row>(params, start.rows_at);
  const RowRange touched(unit.ending[0].touched);
  const int lane = threadIdx.x % 32;
  const auto find = [&](int32_t row) {
    // Rows beyond the unit's take the query of its last.
    const int32_t inside = max(0, min(touched.begin + row, touched.end - 1));
    return QueryRow(params, RowFinder::of(start, first_unit), unit.block * kBlockRows + inside,
                    unit.kv_head);
  };
  const QueryRow mine[2] = {find(lane / 4), find(lane / 4 + 8)};
  uint4 words[2][kWords];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto* const from =
        reinterpret_cast<const uint4*>(mine[i].address(params)) + lane % 4 * kWords;
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[i][w] = __ldg(from + w);
  }
  const QueryRow finished = find(warp + lane % 2 * 8);
  const RowPlace place = RowPlace::of(params, finished.q_row, finished.head);
  const float k_scale = __ldg(&params.k_scale[unit.kv_head * params.k_scale_stride]);
  const int consumer = warp / 4;
  if constexpr (C::kCapped) {
    shared.fp8.into_cap[consumer] = params.into_cap * k_scale;
  } else {
    r.scale_log2 = params.scale_log2 * k_scale;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    r.top[i] = -INFINITY;
    r.sum[i] = 0;
    const int32_t at = warp % 4 * 16 + lane / 4 + i * 8;
    if (lane % 4 == 0) {
      shared.visible[consumer][at] = {__ldg(&rows[mine[i].index].visible_begin),
                                      __ldg(&rows[mine[i].index].visible_end)};
      keep_holes<C>(params, start, mine[i], shared.tree_rows[consumer][at]);
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) q.set(i, w, scaled_queries(params, words[i][w]));
  }
  q.convert();
#pragma unroll
  for (int d = 0; d < C::kHeadDim / 2; ++d) r.o[d] = 0;
  __syncwarp();
  return place;
}

/// 16 bytes of a token in a slot of the ring: see Fp8Slots.
__device__ __forceinline__ uint4 chunk_of(const uint8_t* tile, int slot, int chunk) {
  return *reinterpret_cast<const uint4*>(tile + slot * 128 + (chunk ^ slot % 8) * 16);
}

/// K of 16 slots: of slots g and g + 8, 32 dimensions.
struct NarrowKeys {
  uint4 words[2][2];

  __device__ __forceinline__ void load(const uint8_t* tile, int first) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i / 2][i % 2] = chunk_of(tile, first + i / 2 * 8 + g, t * 2 + i % 2);
    }
  }
  /// S = Q K^T.
  template <class E>
  __device__ __forceinline__ void multiply(const NarrowQueries<E>& q,
                                           Scores<kNarrowSlots>& s) const {
    float parts[2][2][4] = {};  // two chains of products for each eight: one would wait for itself
#pragma unroll
    for (int step = 0; step < NarrowQueries<E>::kSteps; ++step) {
#pragma unroll
      for (int eight = 0; eight < 2; ++eight) {
        const uint4& word = words[eight][step / 4];
        const uint32_t four[4] = {word.x, word.y, word.z, word.w};
        const uint2 b = convert_four(four[step % 4], __half{});
        ptx::mma_m16n8k16(parts[eight][step % 2], q.steps[step], b.x, b.y);
      }
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      s[j] = parts[j / 4][0][j % 4] + parts[j / 4][1][j % 4];
      if constexpr (NarrowQueries<E>::kScaled) s[j] *= q.back[j / 2 % 2];
    }
  }
};

/// V of 16 slots: of slots 2 t, 2 t + 1, and these plus 8, 16 dimensions.
struct NarrowValues {
  uint4 words[4];

  __device__ __forceinline__ void load(const uint8_t* tile, int first,
                                       const Holes<kNarrowSlots>& holes) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = chunk_of(tile, first + slot(i, t), g);
    // Slots without a token have weight 0, but 0 * NaN is NaN.
    if (!holes.any) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((holes.slots[0] >> slot(i, t) & 1) != 0) words[i] = make_uint4(0, 0, 0, 0);
    }
  }
  /// O += P V: o[4 * i ...] are the products with dimensions 16 * column + i.
  __device__ __forceinline__ void multiply(const uint32_t (&p)[4], float* o) const {
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
      const uint2 low = two_of(words[0], words[1], i), high = two_of(words[2], words[3], i);
      ptx::mma_m16n8k16(o + i * 4, p, low.x, high.x);
      ptx::mma_m16n8k16(o + i * 4 + 4, p, low.y, high.y);
    }
  }

 private:
  __device__ static int slot(int i, int t) { return i / 2 * 8 + t * 2 + i % 2; }
  /// Of two slots byte `i`, side by side, and byte `i` + 1.
  __device__ __forceinline__ static uint2 two_of(const uint4& a, const uint4& b, int i) {
    const uint32_t as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
    return convert_four(__byte_perm(as[i / 4], bs[i / 4], i % 4 == 0 ? 0x5140 : 0x7362), __half{});
  }
};

/// A consumer warp in a narrow thread block: its places in the rings.
template <class C>
class NarrowWarp {
 public:
  using Queries = NarrowQueries<typename C::Element>;

  __device__ NarrowWarp(const AttendParams& params, SharedPlan<C>& shared)
      : params_(params),
        shared_(shared),
        keys_(Tiles::ring(shared)),
        values_(Tiles::ring(shared)),
        info_(shared.info_ring) {
    values_.advance();  // see Config::kKeysAhead
    values_.advance();
  }

  /// The tiles of a unit, whose rows begin at `row` of its block.
  __device__ __forceinline__ void attend(int warp, int32_t row, int32_t tiles, const Queries& q,
                                         RowState<C>& r) {
    constexpr int N = kNarrowSlots;
    const int first = warp * N;
#pragma unroll 1
    for (int32_t left = tiles; left > 0; --left) {
      keys_.wait_full();
      mark(Stage::kKeys, true);
      NarrowKeys k;
      k.load(Tiles::slot(shared_, keys_.stage()), first);
      give_back(keys_);
      keys_.advance();
      if (begun_) keys_.advance();
      begun_ = true;
      Scores<N> s;
      k.multiply(q, s);
      cap_scores<C, N>(params_, shared_, warp / 4, s);
      const Holes<N> holes = mask_scores<C, N>(s, r, shared_, shared_.info[info_.stage()], warp / 4,
                                               first, row, [] {});
      give_back(info_);
      info_.advance();
      float alpha[2];
      if (softmax<C, N>(params_, s, r, alpha)) rescale<C>(r, alpha);
      Weights<N> p;
      pack_weights<__half, N>(s, p);
      mark(Stage::kWeights, true);
      values_.wait_full();
      NarrowValues v;
      v.load(Tiles::slot(shared_, values_.stage()), first, holes);
      give_back(values_);
      values_.advance();
      values_.advance();
      v.multiply(p[0], r.o);
    }
  }

 private:
  using Tiles = Landing<C, true>;

  /// By all lanes, when they have read what `cursor` stands at.
  template <class Cursor>
  __device__ __forceinline__ static void give_back(const Cursor& cursor) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) cursor.release();
  }

  const AttendParams& params_;
  SharedPlan<C>& shared_;
  RingCursor<Tiles::kSlots> keys_, values_;
  RingCursor<C::kInfos> info_;
  bool begun_ = false;  ///< past the first K of all
};

/// What the warps of a narrow unit hand over, eight rows at a time: in the queries' place, which
/// has no queries then. Lane 4 * g + t has of row g 32 columns that follow each other.
template <class C>
struct NarrowParts {
  static constexpr int kFours = C::kHeadDim / 4;
  float4* fours;
  float4* ends;

  __device__ explicit NarrowParts(SharedPlan<C>& shared)
      : fours(&shared.q[0].handed[0][0]), ends(shared.handed_ends) {
    static_assert(C::kConsumerWarps * 8 * kFours * sizeof(float4) == sizeof(shared.q));
  }
  /// Four columns of a warp's row; such that eight lanes write to as many places of a line.
  __device__ float4& at(int warp, int row, int four) {
    static_assert(kFours == 32);
    return fours[(warp * 8 + row) * kFours + (four ^ (four / 8 | (row & 1) << 2))];
  }
  /// Top and sum.
  __device__ float4& end(int warp, int row) { return ends[warp * 8 + row]; }
};

/// Row `warp` of eight, of all warps' parts: one lane's four columns, the row's top and its sum.
template <class C>
struct NarrowRow {
  float4 o;
  float base, sum;  ///< base: top times the scale

  __device__ __forceinline__ NarrowRow(NarrowParts<C>& parts, int warp, float scale) {
    constexpr int kWarps = C::kConsumerWarps;
    const int lane = threadIdx.x % 32;
    // Lane i, and those that follow it in eights, weighs what warp i has.
    const float4 end = parts.end(lane % kWarps, warp);
    float top = end.x;
#pragma unroll
    for (int step = 1; step < kWarps; step *= 2) {
      top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    }
    base = top == -INFINITY ? 0.0f : __fmul_rn(top, scale);
    const float weight = ptx::ex2(__fmul_rn(end.x, scale) - base);
    sum = weight * end.y;
#pragma unroll
    for (int step = 1; step < kWarps; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    o = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const float4 part = parts.at(i, warp, lane);
      const float w = __shfl_sync(~0u, weight, i);
      o = make_float4(o.x + w * part.x, o.y + w * part.y, o.z + w * part.z, o.w + w * part.w);
    }
  }
  __device__ void scale_by(float factor) {
    o = make_float4(o.x * factor, o.y * factor, o.z * factor, o.w * factor);
  }
};

/// Puts together what the warps have of a unit's rows, each row by one warp, and writes them: to
/// out where nobody else has seen anything for them, else to partials.
template <class C>
__device__ __forceinline__ void finish_narrow(const AttendParams& params, SharedPlan<C>& shared,
                                              const Unit& unit, int warp, const RowPlace& place,
                                              RowState<C>& r) {
  constexpr int kBarrier = 13;
  using E = typename C::Element;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const Ending& ending = unit.ending[0];
  const RowRange touched(ending.touched), direct(ending.direct);
  NarrowParts<C> parts(shared);
#pragma unroll 1  // a second copy of so much code would not pay
  for (int half = 0; half < 2 && half * 8 < touched.end - touched.begin; ++half) {
    if (half > 0) ptx::bar_sync(kBarrier, 256);
    const auto o = [&](int j) { return half == 0 ? r.o[j] : r.o[j + 2]; };
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int j = k % 4 * 16 + k / 4;
      parts.at(warp, g, t * 8 + k) = make_float4(o(j), o(j + 4), o(j + 8), o(j + 12));
    }
    if (t == 0) {
      parts.end(warp, g) =
          half == 0 ? make_float4(r.top[0], r.sum[0], 0, 0) : make_float4(r.top[1], r.sum[1], 0, 0);
    }
    ptx::bar_sync(kBarrier, 256);
    const int32_t row = touched.begin + half * 8 + warp;
    if (row >= touched.end) continue;
    NarrowRow<C> all(parts, warp, scale_log2(params, r));
    float scale = all.sum == 0 ? 0.0f : ptx::rcp(all.sum);
    float lse = all.sum == 0 ? -INFINITY : (all.base + ptx::lg2(all.sum)) * kLn2;
    scale *= __ldg(&params.v_scale[unit.kv_head * params.v_scale_stride]);
    if (!direct.has(row)) {
      all.scale_by(scale);
      const int64_t slot = int64_t{ending.partial} + row - touched.begin;
      float* const to = params.partials + slot * C::kHeadDim;
      __stcg(reinterpret_cast<float2*>(to + partial_place(lane * 4)),
             make_float2(all.o.x, all.o.y));
      __stcg(reinterpret_cast<float2*>(to + partial_place(lane * 4 + 2)),
             make_float2(all.o.z, all.o.w));
      if (lane == 0) __stcg(&partial_lse<C>(params, shared.start)[slot], lse);
      continue;
    }
    if (params.sinks != nullptr) {
      all.scale_by(scale);  // in two steps, as where partials are merged
      scale = add_sink(params, head_of(params, unit.block * kBlockRows + row, unit.kv_head), lse);
    }
    all.scale_by(scale);
    const int64_t out = __shfl_sync(~0u, place.out, half);
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(params.out) + out + lane * 4) =
        make_uint2(ptx::cvt_pack(all.o.x, all.o.y, E{}), ptx::cvt_pack(all.o.z, all.o.w, E{}));
    if (lane == half && params.lse != nullptr) params.lse[place.lse] = lse;
  }
  ptx::bar_sync(kBarrier, 256);  // all is read, and written
}

/// What a consumer warp does in a thread block that has narrow units alone.
template <class C>
__device__ void consume_narrow(const AttendParams& params, SharedPlan<C>& shared) {
  const Start& start = shared.start;
  const int warp = threadIdx.x / 32 - 4;
  NarrowWarp<C> tiles(params, shared);
  RowState<C> r;
  typename NarrowWarp<C>::Queries q;
  for (int32_t done = 0; done < start.unit_end - start.unit_begin;) {
    const Unit& unit = nth_unit(params, start, done);
    const RowPlace place = open_narrow<C>(params, unit, done == 0, warp, shared, r, q);
    mark(Stage::kQueries, true);
    tiles.attend(warp, RowRange(unit.ending[0].touched).begin, unit.split_tiles, q, r);
    mark(Stage::kTiles);
    reduce_sums<C>(r);
    ++done;
    finish_narrow<C>(params, shared, unit, warp, place, r);
    mark(Stage::kWritten);
    if (warp == 0 && threadIdx.x % 32 == 0 && unit.ending[0].partial >= 0) {
      publish(params, shared.start, shared.epoch, 0, done);
    }
    mark(Stage::kPublished);
  }
}

}  // namespace pando::cuda
