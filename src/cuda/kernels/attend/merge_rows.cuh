// Partial rows: where they lie, how it is told that they are there, and how a warp merges some.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/memory.cuh"

namespace pando::cuda {

/// The query head of a packed row.
__device__ __forceinline__ int32_t head_of(const AttendParams& params, int32_t packed,
                                           int32_t kv_head) {
  return kv_head * params.group + packed - params.by_group.quotient(packed) * params.group;
}

/// Merges the sink of a query head into a row's last result: returns what the row must be scaled
/// by. The same operations wherever a row ends, none contracted with what comes before: a row has
/// the same bits whether it went by way of partials or not.
__device__ __forceinline__ float add_sink(const AttendParams& params, int32_t head, float& lse_ln) {
  const float sink = __ldg(&params.sinks[head]);
  const float top = fmaxf(lse_ln, sink);
  if (top == -INFINITY) return 0;
  const float a = ptx::ex2(__fmul_rn(__fadd_rn(lse_ln, -top), kLog2E));
  const float b = ptx::ex2(__fmul_rn(__fadd_rn(sink, -top), kLog2E));
  const float sum = __fadd_rn(a, b);
  lse_ln = __fadd_rn(top, __fmul_rn(ptx::lg2(sum), kLn2));
  return __fmul_rn(a, ptx::rcp(sum));
}

/// Tells the grid that this warpgroup has finished `units` units; by one thread, after a barrier.
__device__ __forceinline__ void publish(const AttendParams& params, const Start& start,
                                        uint64_t epoch, int consumer, int32_t units) {
  ptx::st_release(&params.control[Control::progress(start.thread_block * 2 + consumer)],
                  epoch << 32 | uint32_t(units));
}

/// Rows [begin, end) of a block, as they are packed in an Ending.
struct RowRange {
  int32_t begin, end;
  __device__ explicit RowRange(uint32_t rows) : begin(rows & 255), end(rows >> 8 & 255) {}
  __device__ bool has(int32_t row) const { return row >= begin && row < end; }
};

/// Partials hold the columns of a row as a thread's accumulators do, so that it writes four at
/// once: the column that stands at an even `place`; the next one follows it.
__device__ __forceinline__ int32_t partial_column(int32_t place) {
  return place / 16 * 16 + place / 2 % 2 * 8 + place / 4 % 4 * 2;
}

/// Its inverse, for an even column.
__device__ __forceinline__ int32_t partial_place(int32_t column) {
  return column / 16 * 16 + column / 2 % 4 * 4 + column / 8 % 2 * 2;
}

/// One lane's source of a merge.
struct LaneSource {
  int32_t partial = 0;
  int32_t begin = 0, end = 0;

  __device__ LaneSource() {}
  __device__ explicit LaneSource(int4 s)
      : partial(s.x), begin(s.y & 255), end(s.y >> 8 & 255), writer(s.z), ticket(s.w) {}
  __device__ bool holds(int32_t row, int32_t rows) const { return begin < row + rows && row < end; }
  __device__ void wait(const AttendParams& params, uint64_t epoch) const {
    const uint64_t target = epoch << 32 | uint32_t(ticket);
    while (int64_t(ptx::ld_acquire(&params.control[Control::progress(writer)]) - target) < 0) {
    }
  }

 private:
  int32_t writer = 0, ticket = 0;
};

/// Columns of a row that each lane of a warp merges.
template <class C>
inline constexpr int kMergeColumns = C::kHeadDim / 32;
/// What one read brings of them, side by side; all lanes' reads follow each other.
template <class C>
using MergeColumns = std::conditional_t<kMergeColumns<C> == 2, float2, float4>;
template <class C>
inline constexpr int kMergeReads = kMergeColumns<C> * sizeof(float) / sizeof(MergeColumns<C>);
/// Place in a partial of a lane's column `c`.
template <class C>
__device__ __forceinline__ int32_t merge_place(int lane, int c) {
  constexpr int kAdjacent = kMergeColumns<C> / kMergeReads<C>;
  return (c / kAdjacent * 32 + lane) * kAdjacent + c % kAdjacent;
}

/// What lane `row` of R rows holds, which every R-th does as well.
template <int R, class T>
__device__ __forceinline__ T of_row(T value, int row) {
  return R == 1 ? value : __shfl_sync(~0u, value, row);
}

/// The largest of each row's values, of which every R-th lane has one.
template <int R>
__device__ __forceinline__ float largest_of_row(float value) {
  if constexpr (R == 1) {
    // Bits that are ordered as the numbers are, and their own inverse.
    const auto ordered = [](int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
    return __int_as_float(ordered(__reduce_max_sync(~0u, ordered(__float_as_int(value)))));
  } else {
#pragma unroll
    for (int step = R; step < 32; step *= 2) {
      value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    }
    return value;
  }
}

/// R rows, merged: of all of them the sums and N columns a lane, in the order of the partials; the
/// top of row `lane` % R.
template <int R, int N>
struct Merged {
  float top, sums[R], o[R][N];

  /// What read `i` of row `r` brought.
  __device__ void add(int r, int i, float weight, float4 v) {
    o[r][i * 4] += weight * v.x;
    o[r][i * 4 + 1] += weight * v.y;
    o[r][i * 4 + 2] += weight * v.z;
    o[r][i * 4 + 3] += weight * v.w;
  }
  __device__ void add(int r, int i, float weight, float2 v) {
    o[r][i * 2] += weight * v.x;
    o[r][i * 2 + 1] += weight * v.y;
  }
  __device__ auto columns(int r, int i) const {
    if constexpr (N == 2) {
      return make_float2(o[r][0], o[r][1]);
    } else {
      return make_float4(o[r][i * 4], o[r][i * 4 + 1], o[r][i * 4 + 2], o[r][i * 4 + 3]);
    }
  }
  /// Row `lane` % R by this lane's factor.
  __device__ void scale_by(float factor) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float row_factor = of_row<R>(factor, r);
      sums[r] *= row_factor;
#pragma unroll
      for (int c = 0; c < N; ++c) o[r][c] *= row_factor;
    }
  }
  /// Of row `lane` % R.
  __device__ float sum(int lane) const {
    float mine = sums[0];
#pragma unroll
    for (int r = 1; r < R; ++r) mine = lane % R == r ? sums[r] : mine;
    return mine;
  }
};

/// What the lanes of a warp tell each other of up to 32 / R sources of R rows: where row r of
/// source s lies, and its weight, at s * R + r. Sources that hold a row of these come first.
struct alignas(16) MergeBoard {
  int32_t slots[32];
  float weights[32];
};

/// A lane's place on the board, of R lanes for each source; `holders` has a bit for each lane whose
/// row stands in its source.
template <int R>
struct BoardPlace {
  int32_t at;     ///< index on the board
  int32_t count;  ///< sources that hold a row
  /// This lane if its row does, else the first that does: what lies there is read as well, since
  /// reads under conditions wait for each other, and has no weight.
  int32_t holder;

  __device__ BoardPlace(uint32_t holders, int lane) {
    constexpr uint32_t kFirstLanes = R == 1 ? ~0u : 0x11111111;  // of each source
    static_assert(R == 1 || R == 4);
    const int first = lane / R * R;
    const uint32_t of_source = holders >> first & (R == 1 ? 1u : 15u);
    uint32_t held = holders;
    if constexpr (R == 4) held |= held >> 2;
    if constexpr (R == 4) held |= held >> 1;
    held &= kFirstLanes;
    const uint32_t before = (1u << first) - 1;
    count = __popc(held);
    const int rank =
        of_source != 0 ? __popc(held & before) : count + __popc(~held & kFirstLanes & before);
    at = rank * R + lane % R;
    holder = (holders >> lane & 1) != 0 ? lane : max(__ffs(holders) - 1, 0);
  }
};

/// Merges the job's share of R rows, by one warp: up to 32 / R sources at a time. Lane s * R + r
/// waits for source s and weighs row r of it; then all lanes add up what is there, U sources in
/// flight. The first kAtHand sources are read at `at_hand`, in shared or global memory.
template <class C, int R, int U, int kAtHand>
__device__ __forceinline__ Merged<R, kMergeColumns<C>> merge_rows(
    const AttendParams& params, const Start& start, const int4* at_hand, const int4* all_sources,
    const MergeJob& job, uint64_t epoch, MergeBoard& board) {
  constexpr int N = kMergeColumns<C>;
  constexpr int kTogether = 4 / R;  // sources between two looks whether there are more
  constexpr int kReads = kMergeReads<C>;
  using Columns = MergeColumns<C>;
  const int lane = threadIdx.x % 32;
  const int32_t row = job.row + lane % R;  // that this lane weighs
  const float* const all_lse = partial_lse<C>(params, start);
  const auto* const columns = reinterpret_cast<const Columns*>(params.partials) + lane;
  Merged<R, N> merged{};
  merged.top = -INFINITY;
  for (int32_t first = 0; first < job.merge.w; first += 32 / R) {
    const int32_t listed = first + lane / R;
    LaneSource source;
    if (listed < job.merge.w) {
      source = LaneSource(listed < kAtHand ? at_hand[listed] : __ldg(&all_sources[listed]));
    }
    if (source.holds(job.row, R)) source.wait(params, epoch);
    __syncwarp();
    mark(Stage::kSources);
    const bool holds = source.holds(row, 1);
    const int32_t slot = source.partial + row - source.begin;
    const float lse = holds ? __ldcg(&all_lse[slot]) : -INFINITY;
    const BoardPlace<R> place(__ballot_sync(~0u, holds), lane);
    board.slots[place.at] = __shfl_sync(~0u, slot, place.holder);
    __syncwarp();
#pragma unroll 1
    for (int32_t done = 0; done < place.count; done += U) {
      const int32_t here = min(place.count - done, U);
      Columns theirs[U][R][kReads];
#pragma unroll
      for (int u = 0; u < U; u += kTogether) {
        if (u >= here) break;
        const int4 four = reinterpret_cast<const int4*>(board.slots)[(done + u) * R / 4];
        const int32_t slots[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int i = 0; i < kReads; ++i) {
            theirs[u + j / R][j % R][i] =
                __ldcg(&columns[int64_t{slots[j]} * (32 * kReads) + i * 32]);
          }
        }
      }
      if (done == 0) {  // while the first rows are on their way
        const float next = largest_of_row<R>(fmaxf(merged.top, lse));
        const float base = next == -INFINITY ? 0.0f : next;
        board.weights[place.at] = __expf(lse - base);
        if (first > 0) merged.scale_by(__expf(merged.top - base));
        merged.top = next;
        __syncwarp();
      }
#pragma unroll
      for (int u = 0; u < U; u += kTogether) {
        if (u >= here) break;
        const float4 four = reinterpret_cast<const float4*>(board.weights)[(done + u) * R / 4];
        const float weights[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // What fills four up, or is another row's, has no weight, but may be infinite.
          if (weights[j] == 0) continue;
          merged.sums[j % R] += weights[j];
#pragma unroll
          for (int i = 0; i < kReads; ++i) {
            merged.add(j % R, i, weights[j], theirs[u + j / R][j % R][i]);
          }
        }
      }
    }
  }
  return merged;
}

}  // namespace pando::cuda
