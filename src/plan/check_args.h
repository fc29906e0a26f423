// Everything about AttendArgs that can be checked before a byte is written.
#pragma once

#include "pando/attention.h"
#include "pando/plan.h"

namespace pando {

/// Throws Error naming the argument, what it got and what was wanted. A plan without rows accepts
/// null pointers. Page ids themselves are not read: entries that no sequence uses may hold
/// anything.
void check_args(const Plan& plan, const AttendArgs& args, Backend backend);

}  // namespace pando
