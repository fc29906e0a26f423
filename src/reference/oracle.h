// The fp64 oracle and the rounding reference: attention straight from the page tables, row by row.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "core/tolerance.h"
#include "pando/attention.h"
#include "pando/batch.h"

namespace pando {

/// Attention of some query rows at every query head.
struct ReferenceResult {
  std::vector<int32_t> q_rows;
  std::vector<double> out;  ///< [q_rows, q_heads, head_dim]
  std::vector<double> lse;  ///< [q_rows, q_heads], natural log
  /// [q_rows, q_heads], of the oracle: as ErrorStats::max_terms.
  std::vector<double> terms = {};
};

/// Inputs of one attention problem in host memory; forest and plan are not involved.
struct Problem {
  BatchView batch;
  AttentionSpec spec;
  ConstRowsView q;
  const void* k = nullptr;
  const void* v = nullptr;
  KvLayout kv;
  const float* sinks = nullptr;         ///< [q_heads], or null
  std::span<const float> k_scale = {};  ///< as in AttendArgs
  std::span<const float> v_scale = {};
};

/// Exact to fp64. `q_rows` selects the rows; empty means all of them.
ReferenceResult oracle(const Problem& problem, std::span<const int32_t> q_rows = {});

/// The same formula with fp32 scores, softmax and accumulation, P and the output rounded to dtype.
ReferenceResult rounded_reference(const Problem& problem, std::span<const int32_t> q_rows = {});

/// Errors of `got` against `oracle`; both must hold the same rows. A NaN or an infinity that the
/// oracle does not have counts as an infinite error.
ErrorStats error_stats(const ReferenceResult& got, const ReferenceResult& oracle);

/// Rows of an output of `attend`, for error_stats. `lse` may be null: the oracle's is assumed.
ReferenceResult gather_result(const AttentionSpec& spec, const ConstRowsView& out, const float* lse,
                              const ReferenceResult& like);

/// Verdict on an output of `attend`.
struct CheckResult {
  ErrorStats got;      ///< of the output
  ErrorStats rounded;  ///< of the rounding reference
  Tolerance allowed;
  /// A reference that overflows proves nothing.
  bool passed() const {
    return std::isfinite(allowed.out) && std::isfinite(allowed.lse) &&
           got.max_err_out <= allowed.out && got.max_err_lse <= allowed.lse;
  }
};
CheckResult check_result(const Problem& problem, const ConstRowsView& out, const float* lse,
                         std::span<const int32_t> q_rows = {});

}  // namespace pando
