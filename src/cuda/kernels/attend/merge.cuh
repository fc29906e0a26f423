// Merging partials: every warp of the grid merges its share of the rows, each as soon as the units
// that it needs are finished.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/timeline.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/prefetch.cuh"

namespace pando::cuda {

/// A row's place in out and lse.
struct RowPlace {
  int64_t out, lse;
};
__device__ __forceinline__ RowPlace place_of(const AttendParams& params, int64_t q_row,
                                             int32_t packed, int32_t kv_head) {
  const int32_t head =
      kv_head * params.group + packed - params.by_group.quotient(packed) * params.group;
  return {q_row * params.out_row_stride + head * params.out_head_stride,
          q_row * params.q_heads + head};
}

/// Tells the grid that this warpgroup has finished `units` units; by one thread, after a barrier.
__device__ __forceinline__ void publish(const AttendParams& params, uint64_t epoch, int consumer,
                                        int32_t units) {
  __threadfence();
  ptx::st_relaxed(&params.control[Control::kProgress + blockIdx.x * 2 + consumer],
                  epoch << 32 | uint32_t(units));
}

/// Partials hold the columns of a row as a thread's accumulators do, so that it writes four at
/// once: the column that stands at an even `place`; the next one follows it.
__device__ __forceinline__ int32_t partial_column(int32_t place) {
  return place / 16 * 16 + place / 2 % 2 * 8 + place / 4 % 4 * 2;
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
    while (int64_t(ptx::ld_acquire(&params.control[Control::kProgress + writer]) - target) < 0) {
    }
  }

 private:
  int32_t writer = 0, ticket = 0;
};

/// A warp's job: some rows of one merge.
struct MergeJob {
  int4 merge;       ///< block, kv_head, source_begin, sources
  uint32_t wanted;  ///< of the job's rows
  int32_t row;
};

/// R rows, merged: of all of them N columns a lane, in the order of the partials, and what belongs
/// to a whole row of row `lane` % R.
template <int R, int N>
struct Merged {
  float top, sum, o[R][N];

  __device__ void add(int r, float weight, float4 v) {
    o[r][0] += weight * v.x;
    o[r][1] += weight * v.y;
    o[r][2] += weight * v.z;
    o[r][3] += weight * v.w;
  }
  __device__ void add(int r, float weight, float2 v) {
    o[r][0] += weight * v.x;
    o[r][1] += weight * v.y;
  }
  __device__ float scale() const { return sum == 0 ? 0.0f : 1 / sum; }
  __device__ float lse() const { return sum == 0 ? -INFINITY : top + logf(sum); }
};

/// Columns of a row that each lane of a warp merges.
template <class C>
inline constexpr int kMergeColumns = C::kHeadDim / 32;

/// Place of the n-th bit of `bits` that is set, from 0; any number below 32 when there are fewer.
__device__ __forceinline__ int nth_bit(uint32_t bits, int n) {
  int place = 0;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const int below = __popc(bits & ((1u << step) - 1));
    if (n < below) continue;
    n -= below;
    bits >>= step;
    place += step;
  }
  return place;
}

/// Merges the job's R rows, by one warp: up to 32 / R sources at a time. Lane s * R + r waits for
/// one of them; then it weighs the s-th that has any of the rows for row r, and all lanes add up
/// what is there, U sources in flight. `first_sources` are the merge's first 32, in shared or
/// global memory.
template <class C, int R, int U>
__device__ __forceinline__ Merged<R, kMergeColumns<C>> merge_rows(
    const AttendParams& params, const Start& start, const int4* first_sources,
    const int4* all_sources, const MergeJob& job, uint64_t epoch) {
  constexpr int N = kMergeColumns<C>;
  using Columns = std::conditional_t<N == 4, float4, float2>;
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
      source = LaneSource(listed < 32 ? first_sources[listed] : __ldg(&all_sources[listed]));
    }
    const bool needed = source.holds(job.row, R);
    if (needed) source.wait(params, epoch);
    __syncwarp();
    mark(Stage::kSources);
    const uint32_t list = __ballot_sync(~0u, needed && lane % R == 0);
    const int count = __popc(list);
    const int from = nth_bit(list, lane / R);
    const int32_t partial = __shfl_sync(~0u, source.partial, from);
    const int32_t begin = __shfl_sync(~0u, source.begin, from);
    const int32_t end = __shfl_sync(~0u, source.end, from);
    const bool holds = lane / R < count && row >= begin && row < end;
    const int32_t slot = partial + row - begin;
    const uint32_t there = __ballot_sync(~0u, holds);
    const float lse = holds ? __ldcg(&all_lse[slot]) : -INFINITY;
    float weight = 0;
    for (int s = 0; s < count; s += U) {
      Columns theirs[U][R];
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int at = (s + u) * R + r;
          const int64_t row_at = __shfl_sync(~0u, slot, at);
          if ((there >> at & 1) != 0) theirs[u][r] = __ldcg(&columns[row_at * 32]);
        }
      }
      if (s == 0) {  // while the first rows are on their way
        float next = fmaxf(merged.top, lse);
        float added, base;
#pragma unroll
        for (int step = R; step < 32; step *= 2) {
          next = fmaxf(next, __shfl_xor_sync(~0u, next, step));
        }
        base = next == -INFINITY ? 0.0f : next;
        weight = added = __expf(lse - base);
#pragma unroll
        for (int step = R; step < 32; step *= 2) added += __shfl_xor_sync(~0u, added, step);
        const float shrink = __expf(merged.top - base);
        merged.sum = merged.sum * shrink + added;
        merged.top = next;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const float row_shrink = __shfl_sync(~0u, shrink, r);
#pragma unroll
          for (int c = 0; c < N; ++c) merged.o[r][c] *= row_shrink;
        }
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int at = (s + u) * R + r;
          const float w = __shfl_sync(~0u, weight, at);
          if ((there >> at & 1) != 0) merged.add(r, w, theirs[u][r]);
        }
      }
    }
  }
  return merged;
}

/// How merges are cut into jobs for warps: each row is one, with many sources in flight; or, where
/// rows are many and sources few, four adjacent rows of a block.
template <class C, bool kSingle>
struct MergeShape {
  static constexpr int kRows = kSingle ? 1 : 4;
  static constexpr int kSources = kSingle ? 16 : 4;  ///< in flight at once

  const Merge* merges;
  const MergeRow* rows;
  int32_t jobs;

  __device__ MergeShape(const AttendParams& params, const Start& start)
      : merges(section<Merge>(params, start.merges_at)),
        rows(section<MergeRow>(params, start.merge_rows_at)),
        jobs(kSingle ? start.merge_rows : start.merges * (kBlockRows / kRows)) {}

  /// The merge of a job, and its first row.
  __device__ const Merge* find(int32_t job, int32_t& row) const {
    if constexpr (kSingle) {
      const MergeRow r = __ldg(&rows[job]);
      row = r & 255;
      return &merges[r >> 8];
    } else {
      row = job % (kBlockRows / kRows) * kRows;
      return &merges[job / (kBlockRows / kRows)];
    }
  }
};

/// Fetches the first job of each consumer warp, and its sources.
template <class C, bool kSingle>
__device__ __forceinline__ void fetch_first_merges(const AttendParams& params, const Start& start,
                                                   SharedPlan<C>& shared) {
  const int lane = threadIdx.x % 32;
  const MergeShape<C, kSingle> shape(params, start);
  const Source* const sources = section<Source>(params, start.sources_at);
  // Lane i, and the lanes that follow it in eights, for consumer warp i % 8.
  const int32_t job = blockIdx.x + gridDim.x * (lane % C::kConsumerWarps);
  const bool there = job < shape.jobs;
  int32_t row;
  const Merge* const merge = shape.find(there ? job : 0, row);
  const int4 m = __ldg(reinterpret_cast<const int4*>(merge));
#pragma unroll 4
  for (int warp = 0; warp < C::kConsumerWarps; ++warp) {
    const int32_t begin = __shfl_sync(~0u, m.z, warp);
    const int32_t count = __shfl_sync(~0u, m.w, warp);
    if (lane < count)
      shared.first_merge[warp].sources[lane] =
          __ldg(reinterpret_cast<const int4*>(&sources[begin + lane]));
  }
  if (there && lane < C::kConsumerWarps) {
    FirstMerge& first = shared.first_merge[lane];
    first.merge = m;
    first.wanted = kSingle ? 1 : __ldg(&merge->rows[row / 32]) >> row % 32 & 15;
    first.row = row;
  }
}

/// Fetches the consumer warps' first merge jobs, and brings all lists of merges into L2; by one
/// warp.
template <class C>
__device__ __forceinline__ void prefetch_merges(const AttendParams& params, SharedPlan<C>& shared) {
  const Start& start = shared.start;
  const int lane = threadIdx.x % 32;
  if (start.merges == 0) return;
  if (start.merge_rows > 0) {
    fetch_first_merges<C, true>(params, start, shared);
  } else {
    fetch_first_merges<C, false>(params, start, shared);
  }
  __syncwarp();
  if (lane == 0) RingCursor<1>(shared.merge_ring).fill();
  const auto* const begin = section<uint8_t>(params, start.merges_at);
  const auto* const end = section<uint8_t>(params, start.end_at);
  for (const uint8_t* at = begin + (int64_t{blockIdx.x} + int64_t{gridDim.x} * lane) * 128;
       at < end; at += int64_t{gridDim.x} * 32 * 128) {
    ptx::prefetch_l2(at);
  }
}

template <class C, bool kSingle>
__device__ __forceinline__ void merge_jobs(const AttendParams& params, SharedPlan<C>& shared) {
  using E = typename C::Element;
  using Shape = MergeShape<C, kSingle>;
  constexpr int R = Shape::kRows;
  constexpr int N = kMergeColumns<C>;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32 - 4;
  const Start& start = shared.start;
  const Shape shape(params, start);
  const Source* const sources = section<Source>(params, start.sources_at);
  const Row* const rows = section<Row>(params, start.rows_at);
  const FirstMerge& first = shared.first_merge[warp];
  const int32_t warps = gridDim.x * C::kConsumerWarps;
  for (int32_t index = blockIdx.x + gridDim.x * warp; index < shape.jobs; index += warps) {
    MergeJob job{first.merge, first.wanted, first.row};
    const int4* first_sources = first.sources;
    if (index >= warps) {
      const Merge* const merge = shape.find(index, job.row);
      job.merge = __ldg(reinterpret_cast<const int4*>(merge));
      job.wanted = kSingle ? 1 : __ldg(&merge->rows[job.row / 32]) >> job.row % 32 & 15;
      first_sources = reinterpret_cast<const int4*>(&sources[job.merge.z]);
    }
    if (job.wanted == 0) continue;
    // Each lane looks up one of the rows while its sources are waited for.
    const int32_t packed =
        min(job.merge.x * kBlockRows + job.row + lane % R, start.packed_rows - 1);
    const int32_t q_row = __ldg(&rows[params.by_group.quotient(packed)].q_row);
    const auto* const all_sources = reinterpret_cast<const int4*>(&sources[job.merge.z]);
    const auto merged = merge_rows<C, R, Shape::kSources>(params, start, first_sources, all_sources,
                                                          job, shared.epoch);
    const RowPlace place = place_of(params, q_row, packed, job.merge.y);
    if (lane < R && (job.wanted >> lane & 1) != 0 && params.lse != nullptr) {
      params.lse[place.lse] = merged.lse();
    }
    const float scale = merged.scale();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float row_scale = __shfl_sync(~0u, scale, r);
      auto* const out = static_cast<uint16_t*>(params.out) + __shfl_sync(~0u, place.out, r);
      if ((job.wanted >> r & 1) == 0) continue;
#pragma unroll
      for (int c = 0; c < N; c += 2) {
        *reinterpret_cast<uint32_t*>(out + partial_column(lane * N + c)) =
            ptx::cvt_pack(merged.o[r][c] * row_scale, merged.o[r][c + 1] * row_scale, E{});
      }
    }
  }
}

/// Every consumer warp of the grid takes its share of the merges.
template <class C>
__device__ void merge_all(const AttendParams& params, SharedPlan<C>& shared) {
  const Start& start = shared.start;
  if (start.merges == 0) return;
  RingCursor<1>(shared.merge_ring).wait_full();
  if (start.merge_rows > 0) {
    merge_jobs<C, true>(params, shared);
  } else {
    merge_jobs<C, false>(params, shared);
  }
}

/// The last consumer warp to leave begins the next epoch; by one thread of each warp, after it has
/// read the epoch and merged.
template <class C>
__device__ __forceinline__ void leave(const AttendParams& params, uint64_t epoch) {
  auto* const left = reinterpret_cast<unsigned long long*>(&params.control[Control::kLeft]);
  if (atomicAdd(left, 1ull) != gridDim.x * C::kConsumerWarps - 1) return;
  ptx::st_relaxed(&params.control[Control::kLeft], 0);
  ptx::st_relaxed(&params.control[Control::kEpoch], epoch + 1);
}

}  // namespace pando::cuda
