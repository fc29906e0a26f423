// What the merge kernel is given.
#pragma once

#include <cstdint>

namespace pando::cuda {

inline constexpr int32_t kMergeThreads = 256;
/// Columns of a thread: 16 bytes of 16-bit elements.
inline constexpr int32_t kMergeColumns = 8;

/// Strides in elements, multiples of kMergeColumns but for those of the LSEs; addresses of elements
/// are aligned to 16 bytes.
struct MergeParams {
  const void* parts;  ///< [count, rows, heads, head_dim]
  const float* lses;  ///< [count, rows, heads], natural log
  void* out;          ///< [rows, heads, head_dim]
  float* lse;         ///< contiguous [rows, heads], or null
  int64_t part_stride, row_stride, head_stride;
  int64_t lse_part_stride, lse_row_stride;
  int64_t out_row_stride, out_head_stride;
  int32_t count;
  int32_t rows;
  int32_t heads;
  int32_t head_dim;  ///< a multiple of kMergeColumns
};

/// Thread blocks of kMergeThreads that a merge needs.
inline int64_t merge_blocks(const MergeParams& p) {
  const int64_t threads = int64_t{p.rows} * p.heads * (p.head_dim / kMergeColumns);
  return (threads + kMergeThreads - 1) / kMergeThreads;
}

}  // namespace pando::cuda
