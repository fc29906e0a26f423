// Merging partials: every warp of the grid merges its share of the rows, each as soon as the units
// that it needs are finished.
#pragma once

#include <cstdint>

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
__device__ __forceinline__ RowPlace place_of(const AttendParams& params, const Row* rows,
                                             int32_t packed, int32_t kv_head) {
  const int64_t q_row = __ldg(&rows[packed / params.group].q_row);
  const int32_t head = kv_head * params.group + packed % params.group;
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

/// What a merge knows of its rows so far: R rows, N columns a lane.
template <int R, int N>
struct Merged {
  float top[R], sum[R], o[R][N];

  __device__ Merged() {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      top[r] = -INFINITY;
      sum[r] = 0;
#pragma unroll
      for (int c = 0; c < N; ++c) o[r][c] = 0;
    }
  }
  /// Takes in S partials at once; lse = -inf stands for one that is empty or not there.
  template <int S>
  __device__ void take(const float (&lse)[S][R], const float (&theirs)[S][R][N]) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float next = top[r];
#pragma unroll
      for (int i = 0; i < S; ++i) next = fmaxf(next, lse[i][r]);
      const float base = next == -INFINITY ? 0.0f : next;
      const float shrink = __expf(top[r] - base);
      top[r] = next;
      sum[r] *= shrink;
#pragma unroll
      for (int c = 0; c < N; ++c) o[r][c] *= shrink;
#pragma unroll
      for (int i = 0; i < S; ++i) {
        const float weight = __expf(lse[i][r] - base);
        sum[r] += weight;
#pragma unroll
        for (int c = 0; c < N; ++c) o[r][c] += weight * theirs[i][r][c];
      }
    }
  }
  __device__ float scale(int r) const { return sum[r] > 0 ? 1 / sum[r] : 0.0f; }
  __device__ float lse(int r) const { return sum[r] > 0 ? top[r] + logf(sum[r]) : -INFINITY; }
};

/// A warp's job: some rows of one merge.
struct MergeJob {
  int4 merge;       ///< block, kv_head, source_begin, sources
  uint32_t wanted;  ///< of the job's rows
  int32_t row;
  int32_t q_row;  ///< of the first row
};

/// Merges the job's R rows, columns [column, column + N) for each lane; by one warp, S sources in
/// flight at once. `mine` is the lane's source among the first 32.
template <class C, int R, int N, int S>
__device__ __forceinline__ Merged<R, N> merge_rows(const AttendParams& params,
                                                   const Source* sources, const MergeJob& job,
                                                   int4 first_source, int32_t column,
                                                   uint64_t epoch) {
  const int lane = threadIdx.x % 32;
  const int32_t row = job.row;
  const int32_t count = job.merge.w;
  const float* const all_lse = partial_lse<C>(params);
  Merged<R, N> merged;
  for (int32_t first = 0; first < count; first += 32) {
    LaneSource mine;
    if (first + lane < count)
      mine = LaneSource(
          first == 0 ? first_source
                     : __ldg(reinterpret_cast<const int4*>(&sources[job.merge.z + first + lane])));
    const bool needed = mine.holds(row, R);
    if (needed) mine.wait(params, epoch);
    __syncwarp();
    mark(Stage::kSources);
    for (uint32_t left = __ballot_sync(~0u, needed); left != 0;) {
      float lse[S][R];
      float theirs[S][R][N];
#pragma unroll
      for (int i = 0; i < S; ++i) {
        const int from = left == 0 ? -1 : __ffs(left) - 1;
        left &= left - 1;
        const int32_t begin = __shfl_sync(~0u, mine.begin, max(from, 0));
        const int32_t end = __shfl_sync(~0u, mine.end, max(from, 0));
        const int64_t slot = __shfl_sync(~0u, mine.partial, max(from, 0)) + row - begin;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const bool there = from >= 0 && row + r >= begin && row + r < end;
          lse[i][r] = there ? __ldcg(&all_lse[slot + r]) : -INFINITY;
#pragma unroll
          for (int c = 0; c < N; ++c) theirs[i][r][c] = 0;
          if (!there) continue;
          const float* o = params.partials + (slot + r) * C::kHeadDim + column;
          if constexpr (N == 4) {
            const float4 four = __ldcg(reinterpret_cast<const float4*>(o));
            theirs[i][r][0] = four.x;
            theirs[i][r][1] = four.y;
            theirs[i][r][2] = four.z;
            theirs[i][r][3] = four.w;
          } else {
#pragma unroll
            for (int c = 0; c < N; ++c) theirs[i][r][c] = __ldcg(o + c);
          }
        }
      }
      merged.take(lse, theirs);
    }
  }
  return merged;
}

/// How merges are cut into jobs for warps. Few rows: each row and each 32 columns of it are a job,
/// so that most warps of the grid get one. Many: four adjacent rows of a block.
template <class C, bool kFew>
struct MergeShape {
  static constexpr int kRows = kFew ? 1 : 4;
  static constexpr int kParts = kFew ? C::kHeadDim / 32 : 1;
  static constexpr int kColumns = C::kHeadDim / 32 / kParts;
  static constexpr int kSources = kFew ? 16 : 2;  ///< in flight at once

  const Merge* merges;
  const MergeRow* rows;
  int32_t jobs;

  __device__ MergeShape(const AttendParams& params, const Start& start)
      : merges(section<Merge>(params, __ldg(&start.merges_at))),
        rows(section<MergeRow>(params, __ldg(&start.merge_rows_at))),
        jobs(kFew ? __ldg(&start.merge_rows) * kParts
                  : __ldg(&start.merges) * (kBlockRows / kRows)) {}

  /// The merge of a job, and its first row.
  __device__ const Merge* find(int32_t job, int32_t& row) const {
    if constexpr (kFew) {
      const MergeRow r = __ldg(&rows[job / kParts]);
      row = r & 255;
      return &merges[r >> 8];
    } else {
      row = job % (kBlockRows / kRows) * kRows;
      return &merges[job / (kBlockRows / kRows)];
    }
  }
  __device__ static int32_t column_of(int32_t job) {
    return (job % kParts * 32 + threadIdx.x % 32) * kColumns;
  }
};

/// Fetches the first job of each consumer warp, and its sources.
template <class C, bool kFew>
__device__ __forceinline__ void fetch_first_merges(const AttendParams& params, const Start& start,
                                                   SharedPlan<C>& shared) {
  const int lane = threadIdx.x % 32;
  const MergeShape<C, kFew> shape(params, start);
  const Source* const sources = section<Source>(params, __ldg(&start.sources_at));
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
    const int32_t packed = min(m.x * kBlockRows + row, __ldg(&start.packed_rows) - 1);
    const Row* const rows = section<Row>(params, __ldg(&start.rows_at));
    first.merge = m;
    first.wanted = kFew ? 1 : __ldg(&merge->rows[row / 32]) >> row % 32 & 15;
    first.row = row;
    first.q_row = __ldg(&rows[packed / params.group].q_row);
  }
}

/// Warp 3: fetches the consumer warps' first merge jobs, and brings all lists of merges into L2.
template <class C>
__device__ __forceinline__ void prefetch_merges(const AttendParams& params, SharedPlan<C>& shared) {
  const Start& start = start_of(params);
  const int lane = threadIdx.x % 32;
  if (__ldg(&start.merges) == 0) return;
  if (__ldg(&start.merge_rows) > 0) {
    fetch_first_merges<C, true>(params, start, shared);
  } else {
    fetch_first_merges<C, false>(params, start, shared);
  }
  __syncwarp();
  if (lane == 0) RingCursor<1>(shared.merge_ring).fill();
  const auto* const begin = section<uint8_t>(params, __ldg(&start.merges_at));
  const auto* const end = section<uint8_t>(params, __ldg(&start.end_at));
  for (const uint8_t* at = begin + (int64_t{blockIdx.x} + int64_t{gridDim.x} * lane) * 128;
       at < end; at += int64_t{gridDim.x} * 32 * 128) {
    ptx::prefetch_l2(at);
  }
}

template <class C, bool kFew>
__device__ __forceinline__ void merge_jobs(const AttendParams& params, const Start& start,
                                           SharedPlan<C>& shared, uint64_t epoch) {
  using E = typename C::Element;
  using Shape = MergeShape<C, kFew>;
  constexpr int R = Shape::kRows;
  constexpr int N = Shape::kColumns;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32 - 4;
  const Shape shape(params, start);
  const Source* const sources = section<Source>(params, __ldg(&start.sources_at));
  const Row* const rows = section<Row>(params, __ldg(&start.rows_at));
  const FirstMerge& first = shared.first_merge[warp];
  const int32_t warps = gridDim.x * C::kConsumerWarps;
  for (int32_t index = blockIdx.x + gridDim.x * warp; index < shape.jobs; index += warps) {
    MergeJob job;
    int4 source;
    if (index < warps) {
      job = {first.merge, first.wanted, first.row, first.q_row};
      source = first.sources[lane];
    } else {
      const Merge* const merge = shape.find(index, job.row);
      job.merge = __ldg(reinterpret_cast<const int4*>(merge));
      job.wanted = kFew ? 1 : __ldg(&merge->rows[job.row / 32]) >> job.row % 32 & 15;
      if (job.wanted == 0) continue;
      job.q_row = __ldg(&rows[(job.merge.x * kBlockRows + job.row) / params.group].q_row);
      if (lane < job.merge.w)
        source = __ldg(reinterpret_cast<const int4*>(&sources[job.merge.z + lane]));
    }
    if (job.wanted == 0) continue;
    const int32_t column = Shape::column_of(index);
    const auto merged =
        merge_rows<C, R, N, Shape::kSources>(params, sources, job, source, column, epoch);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float scale = merged.scale(r);
      const float next = N == 1 ? __shfl_down_sync(~0u, merged.o[r][0], 1) : 0.0f;
      if ((job.wanted >> r & 1) == 0) continue;
      const int32_t packed = job.merge.x * kBlockRows + job.row + r;
      const int64_t q_row = r == 0 ? job.q_row : __ldg(&rows[packed / params.group].q_row);
      const int32_t head = job.merge.y * params.group + packed % params.group;
      auto* const out = static_cast<uint16_t*>(params.out) + q_row * params.out_row_stride +
                        head * params.out_head_stride + column;
      if constexpr (N == 1) {
        if (lane % 2 == 0)
          *reinterpret_cast<uint32_t*>(out) =
              ptx::cvt_pack(merged.o[r][0] * scale, next * scale, E{});
      } else {
#pragma unroll
        for (int c = 0; c < N; c += 2) {
          *reinterpret_cast<uint32_t*>(out + c) =
              ptx::cvt_pack(merged.o[r][c] * scale, merged.o[r][c + 1] * scale, E{});
        }
      }
      if (column == 0 && params.lse != nullptr)
        params.lse[q_row * params.q_heads + head] = merged.lse(r);
    }
  }
}

/// Every consumer warp of the grid takes its share of the merges.
template <class C>
__device__ void merge_all(const AttendParams& params, SharedPlan<C>& shared, uint64_t epoch) {
  const Start& start = start_of(params);
  if (__ldg(&start.merges) == 0) return;
  RingCursor<1>(shared.merge_ring).wait_full();
  if (__ldg(&start.merge_rows) > 0) {
    merge_jobs<C, true>(params, start, shared, epoch);
  } else {
    merge_jobs<C, false>(params, start, shared, epoch);
  }
}

/// The last consumer warp to leave begins the next epoch; by one thread of each warp, after it has
/// read the epoch and merged.
template <class C>
__device__ __forceinline__ void leave(const AttendParams& params) {
  auto* const left = reinterpret_cast<unsigned long long*>(&params.control[Control::kLeft]);
  if (atomicAdd(left, 1ull) != gridDim.x * C::kConsumerWarps - 1) return;
  ptx::st_relaxed(&params.control[Control::kLeft], 0);
  ptx::st_relaxed(&params.control[Control::kEpoch], epoch_now(params) + 1);
}

}  // namespace pando::cuda
