#include "commands/common.h"

#include <fmt/chrono.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cases/files.h"
#include "core/check.h"
#include "git_commit.h"
#include "pando/cpu.h"
#include "pando/cuda.h"

namespace pando::cli {
namespace {

/// Text after the colon of the first line of `file` that starts with `key`.
std::string system_value(const char* file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

}  // namespace

ChosenBackend choose_backend(std::string_view name) {
  if (name == "cpu") return {Backend::kCpu, "cpu"};
  if (name == "cuda" || name == "auto") {
    const std::string why = cuda_unavailable();
    if (why.empty()) return {Backend::kCuda, name == "auto" ? "cuda (auto)" : "cuda"};
    if (name == "auto") return {Backend::kCpu, fmt::format("cpu (auto: {})", why)};
    fail(ErrorCode::kUnsupported, "backend: got \"cuda\", but {}: want cpu or auto", why);
  }
  fail(ErrorCode::kInvalidArgument, "backend: got \"{}\", want one of cpu, cuda, auto", name);
}

DeviceProfile ChosenBackend::profile(int threads) const {
  return is_cuda() ? cuda_profile() : cpu_profile(threads);
}

std::string ChosenBackend::device_text(int32_t workers) const {
  if (is_cuda()) {
    return fmt::format("{}, {} multiprocessors", cuda_device_info().name, workers);
  }
  return fmt::format("{}, {}, {} threads", cpu_name(), cpu_simd_name(), workers);
}

Json ChosenBackend::device_json(int32_t workers) const {
  if (is_cuda()) {
    const CudaDeviceInfo info = cuda_device_info();
    return {{"backend", "cuda"},
            {"device", info.name},
            {"driver", cuda_version_text(info.driver_version)},
            {"runtime", cuda_version_text(info.runtime_version)},
            {"sm_clock_mhz", info.sm_clock_mhz},
            {"thread_blocks", workers}};
  }
  Json json = {
      {"backend", "cpu"}, {"device", cpu_name()}, {"simd", cpu_simd_name()}, {"threads", workers}};
  if (const double mhz = cpu_clock_mhz(); mhz > 0) json["clock_mhz"] = mhz;
  return json;
}

DeviceProfile profile_of_name(const std::string& name, int threads) {
  if (name == "cpu") return cpu_profile(threads);
  require(threads == 0, "threads: got {}, which only the profile cpu takes", threads);
  if (name == "h100") return h100_profile();
  cases::Buffer bytes;
  try {
    bytes = cases::read_file(name);
  } catch (const Error& error) {
    fail(error.code, "profile: got \"{}\", want one of cpu, h100, or a file: {}", name,
         error.message);
  }
  try {
    return profile_from_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  } catch (const Error& error) {
    fail(error.code, "{}: {}", name, error.message);
  }
}

Target choose_target(std::string_view backend, const std::string& profile, int threads) {
  if (profile.empty()) {
    const ChosenBackend chosen = choose_backend(backend);
    check_threads(chosen, threads);
    return {chosen, chosen.profile(threads), "stored"};
  }
  const DeviceProfile named = profile_of_name(profile, threads);
  const bool cuda = named.backend == Backend::kCuda;
  const std::string_view own = cuda ? "cuda" : "cpu";
  if (cuda) {
    const std::string why = cuda_unavailable();
    if (!why.empty()) {
      fail(ErrorCode::kUnsupported, "profile: got \"{}\", which is for CUDA, but {}", profile, why);
    }
  }
  const ChosenBackend chosen = choose_backend(backend == "auto" ? own : backend);
  require(chosen.backend == named.backend,
          "profile: got \"{}\" for {}, want one for the backend {}", profile, own, chosen.text);
  check_threads(chosen, threads);
  return {chosen, named, profile};
}

std::string cuda_version_text(int32_t version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

void check_threads(const ChosenBackend& backend, int threads) {
  require(threads >= 0 && threads <= 1024, "threads: got {}, want a number in [0, 1024]", threads);
  require(threads == 0 || !backend.is_cuda(), "threads: got {}, which only the CPU backend takes",
          threads);
}

std::string cpu_name() {
  const std::string name = system_value("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown" : name;
}

double cpu_clock_mhz() {
  return std::strtod(system_value("/proc/cpuinfo", "cpu MHz").c_str(), nullptr);
}

int64_t available_bytes() {
  const std::string kib = system_value("/proc/meminfo", "MemAvailable");
  return kib.empty() ? int64_t{1} << 30 : std::strtoll(kib.c_str(), nullptr, 10) * 1024;
}

std::string commit() { return kGitCommit; }

std::string now_utc() {
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(now));
}

cases::KvOrder order_from_name(std::string_view name) {
  if (name == "hnd") return cases::KvOrder::kHnd;
  if (name == "nhd") return cases::KvOrder::kNhd;
  fail(ErrorCode::kInvalidArgument, "layout: got \"{}\", want one of hnd, nhd", name);
}

std::optional<DType> kv_dtype_from_name(std::string_view name) {
  if (name.empty()) return std::nullopt;
  require(name == dtype_name(DType::kE4M3),
          "kv-dtype: got \"{}\", want fp8, or none of it: as dtype", name);
  return DType::kE4M3;
}

std::string bandwidth_text(const DeviceProfile& profile) {
  return fmt::format("{:.1f} GB/s", profile.dram_bytes_per_us / 1e3);
}

std::string peak_text(const DeviceProfile& profile, DType dtype) {
  return fmt::format("{:.0f} GFLOP/s",
                     profile.rates[static_cast<size_t>(dtype)].peak_flops_per_us / 1e3);
}

}  // namespace pando::cli
