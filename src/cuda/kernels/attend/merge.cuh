// The end of a launch: every warp of the grid merges its share of the rows, each as soon as the
// units that it needs are finished.
#pragma once

#include <cstdint>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/merge_rows.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/memory.cuh"

namespace pando::cuda {

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
#pragma unroll
    for (int at = lane; at < FirstMerge::kSources; at += 32) {
      if (at < count) {
        shared.first_merge[warp].sources[at] =
            __ldg(reinterpret_cast<const int4*>(&sources[begin + at]));
      }
    }
  }
  if (there && lane < C::kConsumerWarps) {
    FirstMerge& first = shared.first_merge[lane];
    first.merge = m;
    first.wanted = kSingle ? 1 : __ldg(&merge->rows[row / 32]) >> row % 32 & 15;
    first.row = row;
  }
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
    auto merged = merge_rows<C, R, Shape::kSources>(params, start, first_sources, all_sources, job,
                                                    shared.epoch);
    const RowPlace place = place_of(params, q_row, packed, job.merge.y);
    float lse = merged.lse();
    float scale = merged.scale();
    if (params.sinks != nullptr) {
      merged.scale_by(scale);
      scale = add_sink(params, place.head, lse);
    }
    if (lane < R && (job.wanted >> lane & 1) != 0 && params.lse != nullptr) {
      params.lse[place.lse] = lse;
    }
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
