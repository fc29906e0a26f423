// Joining what two threads have seen for the same rows and columns.
#pragma once

#include "cuda/kernels/attend/config.cuh"
#include "cuda/kernels/attend/scores.cuh"
#include "cuda/ptx/math.cuh"

namespace pando::cuda {

/// Joins what another thread has seen into `r`: its tops and sums, `ends`, and its output, four
/// elements at a time in the order of `r`.
template <class C, class Theirs>
__device__ __forceinline__ void join_rows(const AttendParams& params, RowState<C>& r, float4 ends,
                                          const Theirs& theirs) {
  const float tops[2] = {ends.x, ends.y}, sums[2] = {ends.z, ends.w};
  float a[2], b[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float both = fmaxf(r.top[i], tops[i]);
    const float scale = scale_log2(params, r);
    const float base = both == -INFINITY ? 0.0f : __fmul_rn(both, scale);
    a[i] = ptx::ex2(__fmul_rn(r.top[i], scale) - base);
    b[i] = ptx::ex2(__fmul_rn(tops[i], scale) - base);
    r.top[i] = both;
    r.sum[i] = r.sum[i] * a[i] + sums[i] * b[i];
  }
#pragma unroll
  for (int j = 0; j < C::kColumns / 8; ++j) {
    const float4 four = theirs(j);
    float* const o = &r.o[j * 4];
    o[0] = o[0] * a[0] + four.x * b[0];
    o[1] = o[1] * a[0] + four.y * b[0];
    o[2] = o[2] * a[1] + four.z * b[1];
    o[3] = o[3] * a[1] + four.w * b[1];
  }
}

}  // namespace pando::cuda
