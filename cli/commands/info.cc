// pando info: what this build can do, and what it knows about this machine.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "commands/commands.h"
#include "commands/common.h"
#include "pando/cpu.h"
#include "pando/version.h"
#include "term/style.h"

namespace pando::cli {

int run_info(const InfoOptions& options) {
  const ChosenBackend backend = choose_backend(options.backend);
  check_threads(options.threads);
  const DeviceProfile stored = cpu_profile(options.threads);
  const DeviceProfile profile = options.measure ? measure_cpu_profile(options.threads) : stored;

  const std::vector<std::pair<std::string, std::string>> supported = {
      {"head_dim", "multiples of 8 up to 256"},
      {"dtypes", "fp32, bf16, fp16"},
      {"heads", "any q_heads that is a multiple of kv_heads"},
      {"page_tokens", "powers of two from 1 to 256"},
      {"layouts", "hnd, nhd, any strides with contiguous head_dim"},
      {"masks", "causal, window, a visible range for each query row"}};

  if (options.json) {
    Json json = {{"version", version()},
                 {"commit", commit()},
                 {"backend", backend.text},
                 {"device", cpu_name()},
                 {"clock_mhz", cpu_clock_mhz()},
                 {"simd", cpu_simd_name()},
                 {"threads", profile.workers},
                 {"measured", options.measure},
                 {"profile", profile_json(profile)}};
    for (const auto& [what, text] : supported) json["supported"][what] = text;
    fmt::print("{}\n", json.dump());
    return 0;
  }

  const term::Style style = term::Style::of(1);
  const auto line = [&](const char* name, const std::string& value) {
    fmt::print("  {:<12} {}\n", name, value);
  };
  fmt::print("{}\n", style.bold(fmt::format("pando {} ({})", version(), commit())));
  line("backend", backend.text);
  line("device", cpu_name());
  line("simd", std::string(cpu_simd_name()));
  line("threads", fmt::format("{}", profile.workers));
  fmt::print("\n{}\n", style.bold(options.measure ? "profile, measured now" : "profile, stored"));
  line("name", profile.name.data());
  line("bandwidth", bandwidth_text(profile));
  line("cache", fmt::format("{:.1f} GB/s up to {}", profile.cache_bytes_per_us / 1e3,
                            term::bytes_text(static_cast<double>(profile.cache_bytes))));
  line("peak", fmt::format("fp32 {}, bf16 {}, fp16 {}", peak_text(profile, DType::kF32),
                           peak_text(profile, DType::kBF16), peak_text(profile, DType::kF16)));
  line("tiles", fmt::format("{} rows × {} tokens", profile.row_tile, profile.kv_tile));
  line("costs",
       fmt::format("launch {}, item {}, partial row {}", term::time_text(profile.launch_us),
                   term::time_text(profile.item_us), term::time_text(profile.partial_row_us)));
  fmt::print("\n{}\n", style.bold("supported"));
  for (const auto& [what, text] : supported) line(what.c_str(), text);
  return 0;
}

}  // namespace pando::cli
