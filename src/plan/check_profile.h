// What a profile must hold before anything is planned for it.
#pragma once

#include "pando/profile.h"

namespace pando {

/// Throws kInvalidArgument naming the field, what it holds and what was wanted.
void check_profile(const DeviceProfile& profile);

}  // namespace pando
