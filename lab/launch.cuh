// Launching a kernel that takes dynamic shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/device.h"

namespace pando::lab {

/// The shared memory of a thread block on Hopper.
inline constexpr int64_t kMostSharedBytes = 227 * 1024;

/// Enqueues `kernel` with `shared_bytes` of shared memory; throws kDevice when that fails.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, int32_t threads, size_t shared_bytes,
            cudaStream_t stream, const Args&... args) {
  // More than 48 KB must be asked for.
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              "lab: shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cuda::check(cudaLaunchKernelEx(&config, kernel, args...), "lab: launch");
}

}  // namespace pando::lab
