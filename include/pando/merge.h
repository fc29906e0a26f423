// The one LSE merge: every partial result in the library is combined by these functions.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define PANDO_HOST_DEVICE __host__ __device__
#else
#define PANDO_HOST_DEVICE
#endif

namespace pando {

/// Weights of two partial results and the LSE (natural log) of their merge.
struct MergeWeights {
  float a;
  float b;
  float lse;
};

/// merge of (o_a, lse_a) and (o_b, lse_b):  lse = ln(e^lse_a + e^lse_b),  o = a * o_a + b * o_b.
///
/// A side with lse = -inf is empty: its weight is 0 and its o must not be read (it may be NaN).
/// Two empties give (0, 0, -inf).
PANDO_HOST_DEVICE inline MergeWeights merge_weights(float lse_a, float lse_b) {
  constexpr float kEmpty = -std::numeric_limits<float>::infinity();
  if (lse_a == kEmpty && lse_b == kEmpty) return {0.0f, 0.0f, kEmpty};
  if (lse_b == kEmpty) return {1.0f, 0.0f, lse_a};
  if (lse_a == kEmpty) return {0.0f, 1.0f, lse_b};
  const float top = lse_a > lse_b ? lse_a : lse_b;
  const float exp_a = std::exp(lse_a - top);
  const float exp_b = std::exp(lse_b - top);
  const float sum = exp_a + exp_b;
  return {exp_a / sum, exp_b / sum, top + std::log(sum)};
}

/// Merges the partial (o_b, lse_b) of one row into (o_a, lse_a), both of head_dim values.
PANDO_HOST_DEVICE inline void merge_into(float* o_a, float* lse_a, const float* o_b, float lse_b,
                                         int32_t head_dim) {
  const MergeWeights w = merge_weights(*lse_a, lse_b);
  for (int32_t d = 0; d < head_dim; ++d) {
    const float a = w.a == 0.0f ? 0.0f : w.a * o_a[d];
    const float b = w.b == 0.0f ? 0.0f : w.b * o_b[d];
    o_a[d] = a + b;
  }
  *lse_a = w.lse;
}

}  // namespace pando
