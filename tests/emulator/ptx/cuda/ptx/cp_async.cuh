#pragma once

#include <cstdint>

#include "emulator/simt.h"

namespace pando::ptx {

inline void cp_async(void* to, const void* from) { emulator::copy_16(to, from); }
inline void cp_async_mbarrier_arrive(uint64_t* barrier) { emulator::arrive_when_copied(barrier); }
inline void cp_async_wait_all() { emulator::wait_copies(); }

}  // namespace pando::ptx
