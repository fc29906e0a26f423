// A kernel that ends its context.
#pragma once

namespace pando::testing {

/// Launches it on the default stream; every later call of the runtime returns its error.
void launch_trap();

}  // namespace pando::testing
