// Everything about AttendArgs that can be checked before a byte is written.
#pragma once

#include "pando/attention.h"
#include "pando/plan.h"

namespace pando {

/// Throws Error naming the argument, what it got and what was wanted. A plan without rows accepts
/// null pointers. Page ids themselves are not read: entries that no sequence uses may hold
/// anything.
void check_args(const Plan& plan, const AttendArgs& args, Backend backend);
/// The same of a plan's header, for a backend that keeps no more of it.
void check_args(const PlanHeader& header, const AttendArgs& args);
/// Throws unless there is a plan and it was made for `backend`.
void check_plan_backend(const Plan& plan, Backend backend);

/// Bytes of workspace that a plan needs.
inline int64_t workspace_bytes(const PlanHeader& h) {
  return h.partials_bytes + h.workers * h.scratch_bytes;
}

}  // namespace pando
