// Whether the bytes of a schedule can be followed blindly.
#pragma once

#include "pando/plan.h"

namespace pando::cuda {

/// True when every offset and index of the plan's schedule stays inside the schedule, the plan's
/// partial rows and its page table. The plan's own header must have been checked before.
bool schedule_is_sane(const Plan& plan);

}  // namespace pando::cuda
