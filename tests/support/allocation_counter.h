// Counts every allocation of a test program that links allocation_counter.cc.
#pragma once

#include <cstdint>

namespace pando::testing {

/// Allocations by operator new since the program started, in all threads.
int64_t allocations();

}  // namespace pando::testing
