// Whether the pointers of AttendArgs are to memory that the kernel can use.
#pragma once

#include "pando/attention.h"
#include "pando/plan.h"

namespace pando::cuda {

/// Throws kTypeMismatch for memory of the host or of another device than `device`, which must be
/// current. What check_args looks at is taken for granted.
void check_tensors(const PlanHeader& header, const AttendArgs& args, int device);

}  // namespace pando::cuda
