// What attend wrote, in host memory, and whether it wrote anything beside that.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cases/buffer.h"
#include "cases/case.h"

namespace pando::cases {

/// What attend wrote.
struct Output {
  Buffer out;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  std::vector<float> lse;  ///< empty when not asked for
  std::string overrun;     ///< what was written that should not have been; empty: nothing

  ConstRowsView view() const { return {out.data(), row_stride, head_stride}; }
  const float* lse_or_null() const { return lse.empty() ? nullptr : lse.data(); }
};

/// Whether two outputs of a case hold the same bits.
bool same_bits(const Case& problem, const Output& a, const Output& b);
/// Whether two query rows of two outputs hold the same bits; the cases must agree in their spec.
bool same_row_bits(const Case& problem, const Output& a, int32_t row_a, const Output& b,
                   int32_t row_b);

inline constexpr int kPoison = 0xff;  ///< every element of such bytes is a NaN in all three dtypes
inline constexpr size_t kGuardBytes = 64;  ///< of poison behind everything that attend writes

/// `bytes` of poison, and the guard.
Buffer poisoned(size_t bytes);
bool is_poison(const std::byte* data, size_t bytes);

/// Strides of an output and its size in elements.
struct OutShape {
  int64_t rows, heads, head_dim, row_stride, head_stride;
  int64_t elements() const { return rows * row_stride; }
};
/// Strided: with gaps between the rows and heads.
OutShape out_shape(const Case& problem, bool strided);

/// Fills in `overrun` of an output that was poison before attend: all that is no output row, the
/// guards behind out, behind lse (one float) and at `workspace_guard` must still be poison. Takes
/// the guard of lse away.
void find_overrun(Output& output, const OutShape& shape, int64_t element_bytes,
                  const std::byte* workspace_guard);

}  // namespace pando::cases
