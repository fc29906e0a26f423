// The attend kernel's own source, run on the host.
#pragma once

#include <cstdint>

#include "pando/attention.h"
#include "pando/plan.h"

namespace pando::emulator {

/// attend of a plan for CUDA on tensors in host memory. The seed decides in which order threads run
/// and when asynchronous work is done: none may change a bit of the result.
void attend(const Plan& plan, const AttendArgs& args, uint64_t seed = 0);

}  // namespace pando::emulator
