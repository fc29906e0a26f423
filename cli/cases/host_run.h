// A plan on a case in host memory.
#pragma once

#include <cstddef>

#include "cases/case.h"
#include "cases/output.h"
#include "pando/plan.h"

namespace pando::cases {

/// The arguments of one call, with the memory that its results take: NaN until attend writes it.
class HostRun {
 public:
  HostRun(const Case& problem, const Plan& plan, bool strided, bool want_lse);

  const AttendArgs& args() const { return args_; }
  /// What attend wrote, and whether it wrote beside that; once.
  Output take();

 private:
  const Case& problem_;
  OutShape shape_;
  Output output_;
  size_t workspace_bytes_;
  Buffer workspace_;
  AttendArgs args_;
};

}  // namespace pando::cases
