// A launch is a call that returns when the kernel is done, one thread block after the other.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "emulator/simt.h"

namespace pando::lab {

inline constexpr int64_t kMostSharedBytes = 227 * 1024;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, int32_t threads, size_t shared_bytes,
            cudaStream_t /*stream*/, const Args&... args) {
  for (uint32_t y = 0; y < grid.y; ++y) {
    for (uint32_t x = 0; x < grid.x; ++x) {
      emulator::Grid block(1, threads, shared_bytes, x + y * grid.x);
      block.place(static_cast<int>(x), static_cast<int>(y));
      block.run([&] { kernel(args...); });
    }
  }
}

}  // namespace pando::lab
