// The bulk tensor copy, as TMA does it.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace pando::emulator {

/// Starts a copy of the box at `coords` to shared memory in the 128-byte swizzle; what lies outside
/// of the tensor becomes 0. The barrier is told of all bytes when they have landed.
void copy_box(void* to, const CUtensorMap& map, const int32_t (&coords)[5], uint64_t* barrier);

}  // namespace pando::emulator
