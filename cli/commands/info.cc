// pando info: what this build can do, and what it knows about this machine.
#include <fmt/format.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "commands/commands.h"
#include "commands/common.h"
#include "core/check.h"
#include "pando/cpu.h"
#include "pando/cuda.h"
#include "pando/version.h"
#include "plan/cuda_shapes.h"
#include "plan/variants.h"
#include "term/style.h"

namespace pando::cli {
namespace {

using Lines = std::vector<std::pair<std::string, std::string>>;

Lines supported(const ChosenBackend& backend) {
  const bool cuda = backend.is_cuda();
  return {{"shapes", cuda ? "head_dim x dtype: " + cuda_shapes_text()
                          : "head_dim multiples of 8 up to 256 x fp32, bf16, fp16"},
          {"heads", "any q_heads that is a multiple of kv_heads"},
          {"page_tokens", cuda ? cuda_pages_text() : "powers of two from 1 to 256"},
          {"layouts", cuda ? "hnd, nhd, any strides of multiples of 8 with contiguous head_dim"
                           : "hnd, nhd, any strides with contiguous head_dim"},
          {"variants", variants_text(cuda ? Backend::kCuda : Backend::kCpu)},
          {"batch_invariant", "yes"}};
}

Lines device_lines(const ChosenBackend& backend, int32_t workers) {
  if (!backend.is_cuda()) {
    return {{"device", cpu_name()},
            {"simd", std::string(cpu_simd_name())},
            {"threads", fmt::format("{}", workers)}};
  }
  const CudaDeviceInfo info = cuda_device_info();
  constexpr double kGB = 1e9;
  return {
      {"device", fmt::format("{} (compute capability {}.{}), {} in all", info.name,
                             info.compute_major, info.compute_minor, cuda_device_count())},
      {"driver", fmt::format("CUDA {}, built with {}", cuda_version_text(info.driver_version),
                             cuda_version_text(info.runtime_version))},
      {"SMs", fmt::format("{} at up to {} MHz", info.multiprocessors, info.sm_clock_mhz)},
      {"memory", fmt::format("{:.1f} GB at {} MHz, {:.1f} GB free",
                             static_cast<double>(info.memory_bytes) / kGB, info.memory_clock_mhz,
                             static_cast<double>(info.free_bytes) / kGB)}};
}

/// "stored for this device", "measured now" or the file.
std::string source_text(const InfoOptions& options, const Target& target) {
  if (options.measure) return "measured now";
  return options.profile.empty() ? "stored for this device" : target.source;
}

Json info_json(const InfoOptions& options, const Target& target) {
  const ChosenBackend& backend = target.backend;
  const DeviceProfile& profile = target.profile;
  Json json = {{"version", version()}, {"commit", commit()}};
  json.update(backend.device_json(profile.workers));
  json["backend"] = backend.text;
  if (backend.is_cuda()) {
    const CudaDeviceInfo info = cuda_device_info();
    json["multiprocessors"] = info.multiprocessors;
    json["memory_bytes"] = info.memory_bytes;
    json["free_bytes"] = info.free_bytes;
    json["memory_clock_mhz"] = info.memory_clock_mhz;
    json["compute_capability"] = fmt::format("{}.{}", info.compute_major, info.compute_minor);
  }
  json["measured"] = options.measure;
  json["profile_from"] = source_text(options, target);
  json["profile"] = Json::parse(profile_to_json(profile));
  for (const auto& [what, text] : supported(backend)) json["supported"][what] = text;
  for (const VariantSupport& support : kVariants) {
    json["variants"][std::string(support.name)] = {{"cpu", support.cpu}, {"cuda", support.cuda}};
  }
  return json;
}

/// Each variant with the backends that have it, the chosen one or not.
Lines variant_lines() {
  Lines lines;
  for (const VariantSupport& support : kVariants) {
    lines.emplace_back(support.name, support.cuda ? "cpu, cuda" : "cpu");
  }
  return lines;
}

void print_profile(const InfoOptions& options, const Target& target, const term::Style& style,
                   const std::function<void(const Lines&)>& print) {
  const DeviceProfile& profile = target.profile;
  fmt::print("\n{}\n", style.bold("profile in use"));
  print({{"name", profile.name.data()},
         {"from", source_text(options, target)},
         {"bandwidth", bandwidth_text(profile)},
         {"cache", fmt::format("{:.1f} GB/s up to {}", profile.cache_bytes_per_us / 1e3,
                               term::bytes_text(static_cast<double>(profile.cache_bytes)))},
         {"peak", fmt::format("fp32 {}, bf16 {}, fp16 {}", peak_text(profile, DType::kF32),
                              peak_text(profile, DType::kBF16), peak_text(profile, DType::kF16))},
         {"tiles", fmt::format("{} rows × {} tokens", profile.row_tile, profile.kv_tile)},
         {"costs",
          fmt::format("launch {}, item {}, partial row {}", term::time_text(profile.launch_us),
                      term::time_text(profile.item_us), term::time_text(profile.partial_row_us))}});
  if (profile.backend != Backend::kCuda) return;
  const ScheduleCost& cost = profile.schedule;
  print({{"thread block",
          fmt::format("whole tile {}, split tile {}, run {}, unit {}",
                      term::time_text(cost.whole_tile_us), term::time_text(cost.split_tile_us),
                      term::time_text(cost.run_us), term::time_text(cost.unit_us))},
         {"merge", fmt::format("{}, turn {}, lookup {}", term::time_text(cost.merge_us),
                               term::time_text(cost.turn_us), term::time_text(cost.lookup_us))}});
}

}  // namespace

int run_info(const InfoOptions& options) {
  Target target = choose_target(options.backend, options.profile, options.threads);
  const ChosenBackend& backend = target.backend;
  require(!options.measure || !backend.is_cuda(),
          "measure: got a CUDA device, which pando calibrate measures; want --backend cpu");
  if (options.measure) target.profile = measure_cpu_profile(options.threads);
  if (options.json) {
    fmt::print("{}\n", info_json(options, target).dump());
    return 0;
  }
  const term::Style style = term::Style::of(1);
  const auto print = [](const Lines& lines) {
    for (const auto& [name, value] : lines) fmt::print("  {:<15} {}\n", name, value);
  };
  fmt::print("{}\n", style.bold(fmt::format("pando {} ({})", version(), commit())));
  print({{"backend", backend.text}});
  print(device_lines(backend, target.profile.workers));
  print_profile(options, target, style, print);
  fmt::print("\n{}\n", style.bold("supported"));
  print(supported(backend));
  fmt::print("\n{}\n", style.bold("variants, by backend"));
  print(variant_lines());
  return 0;
}

}  // namespace pando::cli
