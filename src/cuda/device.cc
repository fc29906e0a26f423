#include "cuda/device.h"

#include "core/check.h"
#include "pando/cuda.h"

namespace pando {
namespace cuda {

std::string error_text(cudaError_t status) {
  return fmt::format("{} ({})", cudaGetErrorName(status), cudaGetErrorString(status));
}

void check(cudaError_t status, std::string_view what) {
  if (status != cudaSuccess) fail(ErrorCode::kDevice, "{}: {}", what, error_text(status));
}

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&before_), "current device");
  if (before_ == device) return;
  check(cudaSetDevice(device), "device");
  changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (changed_) cudaSetDevice(before_);
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "stream");
  return status == cudaStreamCaptureStatusActive;
}

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "device attribute");
  return value;
}

/// Number of devices; `why` says why there are none.
int count_devices(std::string& why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice) {
    cudaGetLastError();  // asking must not leave an error behind
    int driver = 0;
    const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
    why = !has_driver ? "there is no CUDA driver"
          : status == cudaErrorInsufficientDriver
              ? fmt::format("the CUDA driver is for CUDA {}.{}, older than this build",
                            driver / 1000, driver % 1000 / 10)
              : "there is no CUDA device";
  } else {
    why = status == cudaSuccess ? "there is no CUDA device" : error_text(status);
  }
  return 0;
}

/// Throws unless there is a device of this number; `what` names the argument.
void check_device_number(int device) {
  std::string why;
  const int count = count_devices(why);
  if (count == 0) fail(ErrorCode::kUnsupported, "device: got {}, but {}", device, why);
  require(device >= 0 && device < count, "device: got {}, want a number in [0, {})", device, count);
}

}  // namespace
}  // namespace cuda

int cuda_device_count() {
  std::string why;
  return cuda::count_devices(why);
}

std::string cuda_unavailable(int device) {
  try {
    cuda_profile(device);
    return "";
  } catch (const Error& error) {
    std::string why;
    return cuda::count_devices(why) == 0 ? why : error.message;
  }
}

CudaDeviceInfo cuda_device_info(int device) {
  using cuda::attribute;
  cuda::check_device_number(device);
  const cuda::DeviceGuard guard(device);
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, device), "device properties");
  CudaDeviceInfo info;
  info.name = properties.name;
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  size_t free = 0;
  size_t total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "device memory");
  info.free_bytes = static_cast<int64_t>(free);
  info.sm_clock_mhz = attribute(cudaDevAttrClockRate, device) / 1000;
  info.memory_clock_mhz = attribute(cudaDevAttrMemoryClockRate, device) / 1000;
  cuda::check(cudaDriverGetVersion(&info.driver_version), "driver version");
  cuda::check(cudaRuntimeGetVersion(&info.runtime_version), "runtime version");
  return info;
}

DeviceProfile cuda_profile(int device) {
  using cuda::attribute;
  cuda::check_device_number(device);
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, device), "device properties");
  if (major != 9 || minor != 0) {
    fail(ErrorCode::kUnsupported,
         "device: got {}, {} of compute capability {}.{}, the CUDA backend supports 9.0 (Hopper)",
         device, properties.name, major, minor);
  }
  if (attribute(cudaDevAttrCooperativeLaunch, device) == 0) {
    fail(ErrorCode::kUnsupported, "device: got {}, {}, which has no cooperative launch", device,
         properties.name);
  }
  DeviceProfile profile = h100_profile();
  profile.name.fill('\0');
  fmt::format_to_n(profile.name.begin(), profile.name.size() - 1, "{}", properties.name);
  profile.workers = properties.multiProcessorCount;
  // What reads reach of the rate at the pins: 3.0 of 3.35 TB/s on an H100.
  constexpr double kReached = 0.895;
  constexpr double kTransfersAClock = 2;
  const double bytes_a_clock = attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8.0;
  profile.dram_bytes_per_us = kReached * kTransfersAClock * bytes_a_clock *
                              attribute(cudaDevAttrMemoryClockRate, device) / 1e3;
  return profile;
}

}  // namespace pando
