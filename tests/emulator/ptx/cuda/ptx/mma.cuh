#pragma once

#include <cstdint>

#include "core/convert.h"
#include "emulator/simt.h"

namespace pando::ptx {

inline void mma_m16n8k16(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  constexpr int kDepth = 16;
  const int lane = threadIdx.x % 32;
  float rows[2][kDepth], columns[2][kDepth];
  const auto number = [](uint64_t two, int e) {
    return f16_to_float(static_cast<uint16_t>(two >> 16 * e));
  };
  for (int j = 0; j < 4; ++j) {
    const uint64_t* const all = emulator::exchange(~0u, "mma", a[j]);
    for (int k = 0; k < kDepth / 2; ++k) {
      rows[j % 2][j / 2 * 8 + k] = number(all[lane / 4 * 4 + k / 2], k % 2);
    }
  }
  const uint32_t b[2] = {b0, b1};
  for (int j = 0; j < 2; ++j) {
    const uint64_t* const all = emulator::exchange(~0u, "mma", b[j]);
    for (int e = 0; e < 2; ++e) {
      for (int k = 0; k < kDepth / 2; ++k) {
        columns[e][j * 8 + k] = number(all[(lane % 4 * 2 + e) * 4 + k / 2], k % 2);
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    float sum = 0;
    for (int k = 0; k < kDepth; ++k) sum += rows[i / 2][k] * columns[i % 2][k];
    d[i] += sum;
  }
}

}  // namespace pando::ptx
