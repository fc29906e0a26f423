#include "cases/host_run.h"

#include <limits>
#include <utility>

namespace pando::cases {

HostRun::HostRun(const Case& problem, const Plan& plan, bool strided, bool want_lse)
    : problem_(problem),
      shape_(out_shape(problem, strided)),
      workspace_bytes_(plan.workspace_bytes()),
      workspace_(poisoned(workspace_bytes_)) {
  output_.out = poisoned(shape_.elements() * dtype_bytes(problem.spec.dtype));
  output_.row_stride = shape_.row_stride;
  output_.head_stride = shape_.head_stride;
  if (want_lse) {
    output_.lse.assign(shape_.rows * shape_.heads + 1, std::numeric_limits<float>::quiet_NaN());
  }
  args_.q = problem.q_view();
  args_.k = problem.k.data();
  args_.v = problem.v.data();
  args_.kv = problem.kv();
  args_.page_ids = problem.tables.page_ids;
  args_.out = {output_.out.data(), output_.row_stride, output_.head_stride};
  args_.lse = want_lse ? output_.lse.data() : nullptr;
  args_.sinks = problem.sinks_or_null();
  args_.k_scale = problem.k_scale;
  args_.v_scale = problem.v_scale;
  args_.workspace = workspace_.span().first(workspace_bytes_);
}

Output HostRun::take() {
  find_overrun(output_, shape_, dtype_bytes(problem_.spec.dtype),
               workspace_.data() + workspace_bytes_);
  return std::move(output_);
}

}  // namespace pando::cases
