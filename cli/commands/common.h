// What several subcommands need: the backend, the machine, and how both are named.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "cases/case.h"
#include "pando/profile.h"

namespace pando::cli {

using Json = nlohmann::ordered_json;

/// The backend that "cpu", "cuda" or "auto" stands for here.
struct ChosenBackend {
  Backend backend = Backend::kCpu;
  std::string text;  ///< "cpu", or "cpu (auto: why)"

  bool is_cuda() const { return backend == Backend::kCuda; }
  /// The stored profile; `threads` as for cpu_profile, and 0 for CUDA.
  DeviceProfile profile(int threads) const;
  /// "Intel(R) Xeon(R), AVX3, 2 threads" or "NVIDIA H100, 132 multiprocessors".
  std::string device_text(int32_t workers) const;
  /// What a record says of the device: its name, and what else identifies it.
  Json device_json(int32_t workers) const;
};
/// Throws kInvalidArgument for another word, kUnsupported for a backend that is not there.
ChosenBackend choose_backend(std::string_view name);

/// The stored profile "cpu" or "h100", or that of a file: plans for a device can be made without
/// it. A file's profile has workers of its own, so that threads must be 0 for it.
DeviceProfile profile_of_name(const std::string& name, int threads);

/// What a command runs on, and what it plans for.
struct Target {
  ChosenBackend backend;
  DeviceProfile profile;
  std::string source;  ///< of the profile: "stored", or what --profile said
};
/// The backend's stored profile where `profile` is empty; else that profile on its own backend.
/// Throws where the backend is not there or not the one that was asked for, and as check_threads
/// does.
Target choose_target(std::string_view backend, const std::string& profile, int threads);

/// Throws kInvalidArgument for negative or absurd numbers, and for any with CUDA.
void check_threads(const ChosenBackend& backend, int threads);

/// "13.0" of 13000.
std::string cuda_version_text(int32_t version);

/// Name of the CPU, "unknown" where the system does not tell.
std::string cpu_name();
/// Its clock now in MHz, 0 where the system does not tell.
double cpu_clock_mhz();
/// Memory that can be had without swapping, in bytes.
int64_t available_bytes();
/// git describe of the source that was built, "unknown" without git.
std::string commit();
/// "2026-11-25T07:00:00Z".
std::string now_utc();

cases::KvOrder order_from_name(std::string_view name);
/// Nothing, as q, for an empty name; else fp8.
std::optional<DType> kv_dtype_from_name(std::string_view name);
/// "32.1 GB/s", "250 GFLOP/s".
std::string bandwidth_text(const DeviceProfile& profile);
std::string peak_text(const DeviceProfile& profile, DType dtype);

}  // namespace pando::cli
