// The end of a launch: every warp of the grid merges its share of the rows, each as soon as the
// units that it needs are finished.
#pragma once

#include <cstdint>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/merge_rows.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/memory.cuh"

namespace pando::cuda {

/// How merges are cut into jobs: each row is one, for a team of warps with many sources in flight;
/// or, where rows are many and sources few, four adjacent rows of a block, for one warp.
template <class C, bool kSingle>
struct MergeShape {
  static constexpr int kRows = kSingle ? 1 : 4;
  /// In flight at once; of longer rows half as many, which take as many registers.
  static constexpr int kSources = (kSingle ? 16 : 4) / kMergeReads<C>;
  /// A warp's jobs that are fetched ahead, and sources of each.
  static constexpr int kFetched = kSingle ? 1 : FirstMerges::kJobs;
  static constexpr int kAtHand = FirstMerges::kSources / kFetched;

  const Merge* merges;
  const MergeRow* rows;
  int32_t jobs;
  int32_t team_shift;  ///< log2 of the warps of a team

  __device__ MergeShape(const AttendParams& params, const Start& start)
      : merges(section<Merge>(params, start.merges_at)),
        rows(section<MergeRow>(params, start.merge_rows_at)),
        jobs(kSingle ? start.merge_rows : start.merges * (kBlockRows / kRows)),
        team_shift(kSingle ? start.merge_team_shift : 0) {}

  /// The first job of a consumer warp, and how far it is from one to the next.
  __device__ int32_t first(int warp) const { return blockIdx.x + gridDim.x * (warp >> team_shift); }
  __device__ int32_t stride() const { return gridDim.x * (C::kConsumerWarps >> team_shift); }

  /// A consumer warp's part of a job.
  __device__ MergeJob open(int32_t index, int warp) const {
    MergeJob job;
    const Merge* merge;
    if constexpr (kSingle) {
      const MergeRow r = __ldg(&rows[index]);
      job.row = r & 255;
      merge = &merges[r >> 8];
      job.wanted = 1;
    } else {
      job.row = index % (kBlockRows / kRows) * kRows;
      merge = &merges[index / (kBlockRows / kRows)];
      job.wanted = __ldg(&merge->rows[job.row / 32]) >> job.row % 32 & 15;
    }
    job.merge = __ldg(reinterpret_cast<const int4*>(merge));
    const int32_t team = 1 << team_shift;
    const int32_t share = (job.merge.w + team - 1) >> team_shift;
    const int32_t before = share * (warp & (team - 1));
    job.merge.z += before;
    job.merge.w = max(0, min(share, job.merge.w - before));
    return job;
  }
};

/// Fetches the first jobs of each consumer warp, and their sources.
template <class C, bool kSingle>
__device__ __forceinline__ void fetch_first_merges(const AttendParams& params, const Start& start,
                                                   SharedPlan<C>& shared) {
  using Shape = MergeShape<C, kSingle>;
  constexpr int kWarps = C::kConsumerWarps;
  static_assert(kWarps * FirstMerges::kJobs <= 32);
  const int lane = threadIdx.x % 32;
  const Shape shape(params, start);
  const Source* const sources = section<Source>(params, start.sources_at);
  // Lane i opens job i / 8 of consumer warp i % 8.
  const int nth = lane / kWarps % Shape::kFetched;
  const int32_t index = shape.first(lane % kWarps) + nth * shape.stride();
  MergeJob job = shape.open(index < shape.jobs ? index : 0, lane % kWarps);
  if (index >= shape.jobs) job.merge.w = 0;
#pragma unroll 1
  for (int at = lane; at < kWarps * FirstMerges::kSources; at += 32) {
    // The jobs' sources, in the order in which first_merges holds them.
    const int nth_source = at % Shape::kAtHand;
    const int job_of = at / Shape::kAtHand % Shape::kFetched;
    const int warp = at / FirstMerges::kSources;
    const int opener = job_of * kWarps + warp;
    const int32_t begin = __shfl_sync(~0u, job.merge.z, opener);
    const int32_t count = __shfl_sync(~0u, job.merge.w, opener);
    if (nth_source < count) {
      ptx::cp_async(&shared.first_merges[warp].sources[at % FirstMerges::kSources],
                    &sources[begin + nth_source]);
    }
  }
  if (lane < kWarps * Shape::kFetched) shared.first_merges[lane % kWarps].jobs[nth] = job;
  ptx::cp_async_wait_all();
}

/// Fetches the consumer warps' first merge jobs; by one warp.
template <class C>
__device__ __forceinline__ void fetch_first_merges(const AttendParams& params,
                                                   SharedPlan<C>& shared) {
  const Start& start = shared.start;
  if (start.merges == 0) return;
  if (start.merge_rows > 0) {
    fetch_first_merges<C, true>(params, start, shared);
  } else {
    fetch_first_merges<C, false>(params, start, shared);
  }
  __syncwarp();
  if (threadIdx.x % 32 == 0) RingCursor<1>(shared.merge_ring).fill();
}

/// What a warp that merges keeps in its query rows' place in shared memory: its lanes' board and,
/// of a team, what it has merged of a row.
template <class C>
struct TeamPart {
  MergeBoard board;
  float o[C::kHeadDim];
  float top, sum;

  __device__ static TeamPart& of(SharedPlan<C>& shared, int warp) {
    static_assert(sizeof(TeamPart) <= 16 * 128);
    return *reinterpret_cast<TeamPart*>(shared.q[warp / 4].rows[0] + warp % 4 * 16 * 128);
  }
};

/// Puts together what the warps of a team have merged of one row; the team's first warp has it
/// then.
template <class C>
__device__ __forceinline__ void join_team(SharedPlan<C>& shared, int32_t team_shift, int warp,
                                          Merged<1, kMergeColumns<C>>& merged) {
  using Columns = MergeColumns<C>;
  constexpr int kBarrier = 8;  // the first of four, more than there are teams
  constexpr int kMostWarps = 1 << kMostMergeTeamShift;
  const int lane = threadIdx.x % 32;
  TeamPart<C>& mine = TeamPart<C>::of(shared, warp);
#pragma unroll
  for (int i = 0; i < kMergeReads<C>; ++i) {
    reinterpret_cast<Columns*>(mine.o)[i * 32 + lane] = merged.columns(0, i);
  }
  if (lane == 0) {
    mine.top = merged.top;
    mine.sum = merged.sums[0];
  }
  ptx::bar_sync(kBarrier + (warp >> team_shift), 32 << team_shift);
  const int32_t team = 1 << team_shift;
  if ((warp & (team - 1)) == 0) {
    // Lane i, and those that follow it in eights, weighs part i.
    const bool counts = lane % kMostWarps < team;
    const TeamPart<C>& weighed = TeamPart<C>::of(shared, warp + (counts ? lane % kMostWarps : 0));
    const float top = counts ? weighed.top : -INFINITY;
    merged = {.top = largest_of_row<1>(top), .sums = {}, .o = {}};
    const float weight = __expf(top - (merged.top == -INFINITY ? 0.0f : merged.top));
#pragma unroll
    for (int i = 0; i < kMostWarps; ++i) {
      if (i >= team) break;
      const TeamPart<C>& part = TeamPart<C>::of(shared, warp + i);
      const float part_weight = __shfl_sync(~0u, weight, i);
      merged.sums[0] += part_weight * part.sum;
#pragma unroll
      for (int read = 0; read < kMergeReads<C>; ++read) {
        merged.add(0, read, part_weight,
                   reinterpret_cast<const Columns*>(part.o)[read * 32 + lane]);
      }
    }
  }
  ptx::bar_sync(kBarrier + (warp >> team_shift), 32 << team_shift);  // before the next job's
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
  const FirstMerges& first = shared.first_merges[warp];
  int nth = 0;
  for (int32_t index = shape.first(warp); index < shape.jobs; index += shape.stride(), ++nth) {
    const bool fetched = nth < Shape::kFetched;
    const MergeJob job = fetched ? first.jobs[nth] : shape.open(index, warp);
    if (job.wanted == 0) continue;
    // Each lane looks up one of the rows while its sources are waited for.
    const int32_t packed =
        min(job.merge.x * kBlockRows + job.row + lane % R, start.packed_rows - 1);
    const int32_t q_row = __ldg(&rows[params.by_group.quotient(packed)].q_row);
    const auto* const all_sources = reinterpret_cast<const int4*>(&sources[job.merge.z]);
    const int4* const at_hand = fetched ? &first.sources[nth * Shape::kAtHand] : all_sources;
    auto merged = merge_rows<C, R, Shape::kSources, Shape::kAtHand>(
        params, start, at_hand, all_sources, job, shared.epoch,
        TeamPart<C>::of(shared, warp).board);
    if constexpr (kSingle) {
      if (shape.team_shift > 0) {
        join_team<C>(shared, shape.team_shift, warp, merged);
        if ((warp & ((1 << shape.team_shift) - 1)) != 0) continue;
      }
    }
    const int32_t head = head_of(params, packed, job.merge.y);
    const RowPlace place = RowPlace::of(params, q_row, head);
    const float sum = merged.sum(lane);
    float lse = sum == 0 ? -INFINITY : merged.top + ptx::lg2(sum) * kLn2;
    float scale = sum == 0 ? 0.0f : ptx::rcp(sum);
    if (params.sinks != nullptr) {
      merged.scale_by(scale);
      scale = add_sink(params, head, lse);
    }
    if (lane < R && (job.wanted >> lane & 1) != 0 && params.lse != nullptr) {
      params.lse[place.lse] = lse;
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float row_scale = of_row<R>(scale, r);
      auto* const out = static_cast<uint16_t*>(params.out) + of_row<R>(place.out, r);
      if ((job.wanted >> r & 1) == 0) continue;
#pragma unroll
      for (int c = 0; c < N; c += 2) {
        *reinterpret_cast<uint32_t*>(out + partial_column(merge_place<C>(lane, c))) =
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

/// Ends this launch's epoch, when all consumer warps have called it; by one thread of each, after
/// it has read the epoch and merged. Nobody waits for the sum.
template <class C>
__device__ __forceinline__ void leave(const AttendParams& params) {
  auto* const left = reinterpret_cast<unsigned long long*>(&params.control[Control::kLeft]);
  const bool first = blockIdx.x == 0 && threadIdx.x / 32 == 4;
  const auto others = gridDim.x * C::kConsumerWarps - 1;
  atomicAdd(left, first ? (1ull << Control::kLaunchShift) - others : 1ull);
}

}  // namespace pando::cuda
