#include "reference/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/check.h"
#include "core/convert.h"
#include "core/mask.h"

namespace pando {
namespace {

/// Where each version rounds. The oracle rounds nowhere.
struct Exact {
  using Real = double;
  static constexpr bool kTerms = true;
  static double weight(double p, DType) { return p; }
  static double output(double o, DType) { return o; }
};

/// fp32 arithmetic, with P and the output rounded to the input type.
struct Rounded {
  using Real = float;
  static constexpr bool kTerms = false;
  static float weight(float p, DType dtype) { return round_to(p, dtype); }
  static float output(float o, DType dtype) { return round_to(o, dtype); }
};

/// Strides with "both zero" resolved to contiguous.
struct RowStrides {
  int64_t row, head;
  RowStrides(const ConstRowsView& view, const AttentionSpec& spec)
      : row(view.row_stride), head(view.head_stride) {
    if (row == 0 && head == 0) {
      head = spec.head_dim;
      row = int64_t{spec.q_heads} * spec.head_dim;
    }
  }
};

struct SequenceRow {
  int32_t sequence;
  RowMask mask;
};

SequenceRow locate(const Problem& problem, int32_t q_row) {
  const auto& starts = problem.batch.q_indptr;
  const auto next = std::upper_bound(starts.begin(), starts.end(), q_row);
  const auto sequence = static_cast<int32_t>(next - starts.begin()) - 1;
  const int32_t q_len = starts[sequence + 1] - starts[sequence];
  return {sequence, row_mask(problem.spec, q_row, q_row - starts[sequence], q_len,
                             problem.batch.kv_len[sequence])};
}

/// What the elements of a kv head are multiplied by.
template <typename Real>
Real scale_of(std::span<const float> scales, int32_t kv_head) {
  if (scales.empty()) return 1;
  return scales[scales.size() == 1 ? 0 : kv_head];
}

/// o and lse of one query row at one query head, straight from the definition; `moved`, where the
/// policy has it, is the row's ReferenceResult::terms.
template <class Policy>
void attend_row(const Problem& problem, const SequenceRow& at, const void* q, int64_t q_offset,
                int32_t q_head, double* out, double* lse, double* moved) {
  using Real = typename Policy::Real;
  const AttentionSpec& spec = problem.spec;
  const int32_t kv_head = q_head / spec.group();
  const DType kv_dtype = spec.kv_dtype_or_default();
  const Real k_scale = scale_of<Real>(problem.k_scale, kv_head);
  const Real scale = k_scale * Real{spec.scale_or_default()};
  const Real v_scale = scale_of<Real>(problem.v_scale, kv_head);
  const int32_t* pages = problem.batch.page_ids.data() + problem.batch.page_indptr[at.sequence];
  const auto kv_offset = [&](int32_t token) {
    const int32_t page_tokens = problem.kv.page_tokens;
    return problem.kv.offset(pages[token / page_tokens], kv_head, token % page_tokens);
  };

  std::vector<int32_t> seen;
  for (int32_t position = at.mask.range.begin; position < at.mask.range.end; ++position) {
    if (at.mask.sees(position)) seen.push_back(position);
  }
  const auto count = static_cast<int32_t>(seen.size());
  std::vector<Real> scores(count);
  std::vector<double> terms(Policy::kTerms ? count : 0);
  constexpr Real kNone = -std::numeric_limits<Real>::infinity();
  const Real sink = problem.sinks == nullptr ? kNone : Real{problem.sinks[q_head]};
  Real top = sink;
  for (int32_t i = 0; i < count; ++i) {
    const int64_t offset = kv_offset(seen[i]);
    Real dot = 0;
    double sizes = 0;
    for (int32_t d = 0; d < spec.head_dim; ++d) {
      const Real term = Real{load_element(q, q_offset + d, spec.dtype)} *
                        Real{load_element(problem.k, offset + d, kv_dtype)};
      dot += term;
      if constexpr (Policy::kTerms) sizes += std::fabs(term);
    }
    scores[i] = dot * scale;
    Real slope = 1;  // of the cap
    if (spec.soft_cap > 0) {
      const Real bent = std::tanh(scores[i] / Real{spec.soft_cap});
      scores[i] = Real{spec.soft_cap} * bent;
      slope = 1 - bent * bent;
    }
    if constexpr (Policy::kTerms) terms[i] = slope * std::fabs(scale) * sizes;
    if (scores[i] > top || std::isnan(scores[i])) top = scores[i];  // a visible NaN must show
  }

  std::vector<Real> o(spec.head_dim, Real{0});
  const bool empty = top == kNone;  // nothing has any weight
  Real sum = empty ? Real{0} : std::exp(sink - top);
  double all_terms = 0;
  for (int32_t i = 0; i < count && !empty; ++i) {
    const Real p = std::exp(scores[i] - top);
    const int64_t offset = kv_offset(seen[i]);
    sum += p;
    if constexpr (Policy::kTerms) all_terms += p * terms[i];
    for (int32_t d = 0; d < spec.head_dim; ++d) {
      o[d] += Policy::weight(p, spec.dtype) * Real{load_element(problem.v, offset + d, kv_dtype)};
    }
  }
  for (int32_t d = 0; d < spec.head_dim; ++d) {
    out[d] = empty ? 0.0 : Policy::output(o[d] * (v_scale / sum), spec.dtype);
  }
  *lse = empty ? -std::numeric_limits<double>::infinity() : double{top + std::log(sum)};
  if constexpr (Policy::kTerms) *moved = empty ? 0 : all_terms / sum;
}

template <class Policy>
ReferenceResult attend_rows(const Problem& problem, std::span<const int32_t> q_rows) {
  const AttentionSpec& spec = problem.spec;
  ReferenceResult result;
  result.q_rows.assign(q_rows.begin(), q_rows.end());
  if (q_rows.empty()) {
    result.q_rows.resize(problem.batch.q_indptr.back());
    std::iota(result.q_rows.begin(), result.q_rows.end(), 0);
  }
  const size_t states = result.q_rows.size() * spec.q_heads;
  result.out.resize(states * spec.head_dim);
  result.lse.resize(states);
  result.terms.resize(states);

  const RowStrides strides(problem.q, spec);
  size_t state = 0;
  for (const int32_t q_row : result.q_rows) {
    const SequenceRow at = locate(problem, q_row);
    for (int32_t head = 0; head < spec.q_heads; ++head, ++state) {
      attend_row<Policy>(problem, at, problem.q.data, q_row * strides.row + head * strides.head,
                         head, &result.out[state * spec.head_dim], &result.lse[state],
                         &result.terms[state]);
    }
  }
  return result;
}

/// |got - want|; equal infinities agree, everything else that is not finite is infinitely wrong.
double difference(double got, double want) {
  if (got == want || (std::isnan(got) && std::isnan(want))) return 0;
  const double error = std::fabs(got - want);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

void track(std::span<const double> got, std::span<const double> want, double& max_err,
           double& max_abs) {
  for (size_t i = 0; i < want.size(); ++i) {
    max_err = std::max(max_err, difference(got[i], want[i]));
    if (std::isfinite(want[i])) max_abs = std::max(max_abs, std::fabs(want[i]));
  }
}

}  // namespace

ReferenceResult oracle(const Problem& problem, std::span<const int32_t> q_rows) {
  return attend_rows<Exact>(problem, q_rows);
}

ReferenceResult rounded_reference(const Problem& problem, std::span<const int32_t> q_rows) {
  return attend_rows<Rounded>(problem, q_rows);
}

ErrorStats error_stats(const ReferenceResult& got, const ReferenceResult& oracle) {
  require(got.q_rows == oracle.q_rows && got.out.size() == oracle.out.size(),
          "got: holds {} rows, want the {} rows of the oracle", got.q_rows.size(),
          oracle.q_rows.size());
  ErrorStats stats;
  track(got.out, oracle.out, stats.max_err_out, stats.max_abs_out);
  track(got.lse, oracle.lse, stats.max_err_lse, stats.max_abs_lse);
  for (const double terms : oracle.terms) {
    if (std::isfinite(terms)) stats.max_terms = std::max(stats.max_terms, terms);
  }
  return stats;
}

ReferenceResult gather_result(const AttentionSpec& spec, const ConstRowsView& out, const float* lse,
                              const ReferenceResult& like) {
  ReferenceResult result{like.q_rows, {}, {}};
  result.out.reserve(like.out.size());
  const RowStrides strides(out, spec);
  for (const int32_t q_row : like.q_rows) {
    for (int32_t head = 0; head < spec.q_heads; ++head) {
      const int64_t offset = q_row * strides.row + head * strides.head;
      for (int32_t d = 0; d < spec.head_dim; ++d) {
        result.out.push_back(load_element(out.data, offset + d, spec.dtype));
      }
      if (lse != nullptr) result.lse.push_back(lse[int64_t{q_row} * spec.q_heads + head]);
    }
  }
  if (lse == nullptr) result.lse = like.lse;
  return result;
}

CheckResult check_result(const Problem& problem, const ConstRowsView& out, const float* lse,
                         std::span<const int32_t> q_rows) {
  const ReferenceResult exact = oracle(problem, q_rows);
  CheckResult check;
  check.got = error_stats(gather_result(problem.spec, out, lse, exact), exact);
  check.rounded = error_stats(rounded_reference(problem, q_rows), exact);
  check.allowed = tolerance(check.rounded, problem.spec.dtype);
  return check;
}

}  // namespace pando
