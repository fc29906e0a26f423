// The CUDA runtime as the library uses it: errors with their names, and the current device.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

namespace pando::cuda {

/// "cudaErrorInvalidDevice (invalid device ordinal)".
std::string error_text(cudaError_t status);
/// Throws kDevice with the name of the error unless `status` is success. Errors stay in the runtime
/// for others to see: nothing here clears them.
void check(cudaError_t status, std::string_view what);

/// Makes a device current, and the one before current again.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

/// Whether what is enqueued on `stream` now becomes part of a graph.
bool is_capturing(cudaStream_t stream);

}  // namespace pando::cuda
