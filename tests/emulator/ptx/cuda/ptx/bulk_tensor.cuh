#pragma once

#include <cuda.h>

#include <cstdint>

#include "emulator/tma.h"

namespace pando::ptx {

inline uint64_t evict_first() { return 1; }
inline uint64_t evict_unchanged() { return 0; }
inline void cp_async_bulk_tensor(void* to, const CUtensorMap* map, const int32_t (&coords)[5],
                                 uint64_t* barrier, uint64_t) {
  emulator::copy_box(to, *map, coords, barrier);
}

}  // namespace pando::ptx
