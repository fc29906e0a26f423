// Runs independent pieces of work on every core that this process may use.
#pragma once

#include <cstdint>
#include <functional>

namespace pando::cases {

/// Cores that this process may run on.
int usable_cores();

/// Calls `body(i)` for every i in [0, count), from several threads, in no fixed order. An exception
/// of any call is rethrown after all threads have stopped.
void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

}  // namespace pando::cases
