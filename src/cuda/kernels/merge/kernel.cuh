// Partials of the same rows over disjoint tokens, merged by their LSEs: what comes from several
// attend calls, of levels or of ranks. The rule and its code are pando/merge.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <limits>

#include "cuda/kernels/merge/params.h"
#include "pando/merge.h"

namespace pando::cuda {

__device__ __forceinline__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widened(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half* to) { *to = __float2half_rn(x); }

/// As many columns as one thread reads at once.
template <class Element>
struct alignas(16) Columns {
  Element x[kMergeColumns];
};

/// A thread has some columns of one row at one head, and goes through the parts in order.
template <class Element>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const MergeParams p) {
  const int32_t each = p.head_dim / kMergeColumns;
  const int64_t place = int64_t{blockIdx.x} * kMergeThreads + threadIdx.x;
  const int64_t row_head = place / each;
  const int32_t column = static_cast<int32_t>(place % each) * kMergeColumns;
  const int64_t row = row_head / p.heads, head = row_head % p.heads;
  if (row >= p.rows) return;
  const Element* g_part =
      static_cast<const Element*>(p.parts) + row * p.row_stride + head * p.head_stride + column;
  const float* g_lse = p.lses + row * p.lse_row_stride + head;
  float o[kMergeColumns] = {};
  float lse_ln = -std::numeric_limits<float>::infinity();
  for (int32_t part = 0; part < p.count; ++part) {
    const MergeWeights w = merge_weights(lse_ln, g_lse[part * p.lse_part_stride]);
    lse_ln = w.lse;
    if (w.b == 0.0f) continue;  // empty, or nothing beside the others: it may hold NaN
    const auto columns = *reinterpret_cast<const Columns<Element>*>(g_part + part * p.part_stride);
    for (int i = 0; i < kMergeColumns; ++i) {
      o[i] = (w.a == 0.0f ? 0.0f : w.a * o[i]) + w.b * widened(columns.x[i]);
    }
  }
  Columns<Element> sums;
  for (int i = 0; i < kMergeColumns; ++i) narrow(o[i], &sums.x[i]);
  *reinterpret_cast<Columns<Element>*>(static_cast<Element*>(p.out) + row * p.out_row_stride +
                                       head * p.out_head_stride + column) = sums;
  if (p.lse != nullptr && column == 0) p.lse[row * p.heads + head] = lse_ln;
}

}  // namespace pando::cuda
