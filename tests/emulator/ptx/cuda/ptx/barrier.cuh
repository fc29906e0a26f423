#pragma once

#include "emulator/simt.h"

namespace pando::ptx {

inline void bar_sync(int32_t name, int32_t threads) { emulator::barrier_sync(name, threads); }
inline void bar_arrive(int32_t name, int32_t threads) { emulator::barrier_arrive(name, threads); }

}  // namespace pando::ptx
