#include "trap.h"

namespace pando::testing {
namespace {

__global__ void trap_kernel() { __trap(); }

}  // namespace

void launch_trap() { trap_kernel<<<1, 1>>>(); }

}  // namespace pando::testing
