// What a profile must hold before anything is planned for it.
#pragma once

#include <cstdint>

#include "pando/profile.h"

namespace pando {

/// The most threads that a CPU is planned for and run on.
inline constexpr int32_t kMostThreads = 4096;

/// Throws kInvalidArgument naming the field, what it holds and what was wanted.
void check_profile(const DeviceProfile& profile);

}  // namespace pando
