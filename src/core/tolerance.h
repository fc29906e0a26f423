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
};

struct Tolerance {
  double out = 0;
  double lse = 0;
};

/// Twice the error of a reference that rounds at the same places (`rounded`, measured against the
/// oracle on the same rows). For the cases in which the reference is right by luck, at least two
/// roundings of the largest result, and what one rounding of the largest score does to a weight.
inline Tolerance tolerance(const ErrorStats& rounded, DType dtype) {
  constexpr double kFp32 = std::numeric_limits<float>::epsilon();
  const double out_floor =
      rounded.max_abs_out * (dtype_epsilon(dtype) + kFp32 * (8 + rounded.max_abs_lse));
  const double lse_floor = std::max(1.0, rounded.max_abs_lse) * 8 * kFp32;
  return {std::max(2 * rounded.max_err_out, out_floor),
          std::max(2 * rounded.max_err_lse, lse_floor)};
}

}  // namespace pando
