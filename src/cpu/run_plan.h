// Runs the work list of a plan with given kernels on a given pool.
#pragma once

#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "pando/attention.h"
#include "pando/plan.h"

namespace pando {

/// `plan` and `args` have passed check_args. Does not allocate.
void run_plan(const Plan& plan, const AttendArgs& args, const KernelSet& kernels, ThreadPool& pool);

}  // namespace pando
