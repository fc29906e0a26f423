// The one tolerance: how far a result may be from the fp64 oracle.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/convert.h"
#include "pando/attention.h"

namespace pando {

/// Largest absolute errors against the oracle, and the largest magnitudes in the oracle.
struct ErrorStats {
  double max_err_out = 0;
  double max_err_lse = 0;
  double max_abs_out = 0;
  double max_abs_lse = 0;
  /// What the LSE moves by when every term q_d * k_d of its scores is off by its own size.
  double max_terms = 0;
};

struct Tolerance {
  double out = 0;
  double lse = 0;
};

/// Twice the error of a reference that rounds at the same places (`rounded`, measured against the
/// oracle on the same rows). For the cases in which the reference is right by luck, at least two
/// roundings of the largest result, and what one rounding of the largest score does to a weight, or
/// of all its terms: they may cancel, and a soft cap makes scores smaller after they were rounded.
inline Tolerance tolerance(const ErrorStats& rounded, DType dtype) {
  constexpr double kFp32 = std::numeric_limits<float>::epsilon();
  const double terms = rounded.max_terms / 2;  // a rounding is half an epsilon
  const double out_floor =
      rounded.max_abs_out *
      (dtype_epsilon(dtype) + kFp32 * (8 + std::max(rounded.max_abs_lse, terms)));
  const double lse_floor = kFp32 * std::max(8 * std::max(1.0, rounded.max_abs_lse), terms);
  return {std::max(2 * rounded.max_err_out, out_floor),
          std::max(2 * rounded.max_err_lse, lse_floor)};
}

}  // namespace pando
