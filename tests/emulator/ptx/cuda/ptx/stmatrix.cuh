#pragma once

#include <cstdint>
#include <cstring>

#include "emulator/simt.h"

namespace pando::ptx {

inline void stmatrix_x4(void* row, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  const int lane = threadIdx.x % 32;
  const uint32_t mine[4] = {m0, m1, m2, m3};
  for (int m = 0; m < 4; ++m) {
    const auto to = __shfl_sync(~0u, reinterpret_cast<uint64_t>(row), m * 8 + lane / 4);
    std::memcpy(reinterpret_cast<uint8_t*>(to) + lane % 4 * 4, &mine[m], 4);
  }
}

}  // namespace pando::ptx
