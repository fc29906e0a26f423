// lab_time: times the lab's kernels on one shape, one JSON line a kernel whose answer is right.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "cases/device.h"
#include "cases/measure.h"
#include "git_commit.h"
#include "lab/lab.h"
#include "lab/lab_case.h"
#include "pando/cuda.h"
#include "pando/error.h"
#include "pando/version.h"

namespace pando::lab {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  int32_t sequences = 64;
  int32_t group = 4;
  int32_t kv_heads = 8;
  int32_t prefix_tokens = 4096;
  int32_t suffix_tokens = 256;
  int32_t reps = 25;
};

/// As `pando bench`: every byte once, or every multiplication at the peak.
double roof_us(const Options& o, const DeviceProfile& profile) {
  const double kv_bytes = 2.0 * o.kv_heads * kHeadDim * sizeof(Element);
  const double rows = static_cast<double>(o.sequences) * o.group * o.kv_heads;
  const double tokens = o.prefix_tokens + static_cast<double>(o.sequences) * o.suffix_tokens;
  const double bytes = tokens * kv_bytes + 2 * rows * kHeadDim * sizeof(Element);
  const double flops = 4 * rows * kHeadDim * (o.prefix_tokens + o.suffix_tokens);
  const double peak = profile.rates[static_cast<size_t>(DType::kBF16)].peak_flops_per_us;
  return std::max(bytes / profile.dram_bytes_per_us, flops / peak);
}

/// False when the answer was wrong: then there is no record.
bool time_kernel(const Kernel& kernel, const Options& o, const LabCase& problem) {
  const LabMemory<cases::DeviceBuffer> memory(problem);
  const cases::DeviceStream stream;
  const auto enqueue = [&] {
    kernel.attend(memory.batch(), static_cast<cudaStream_t>(stream.get()));
  };
  enqueue();  // loads the kernel: not counted
  stream.synchronize();
  const cases::DeviceGraph graph(stream, enqueue);
  const cases::Timing timing = cases::summarise(cases::time_replays(graph, stream, o.reps, true));
  const LabOutput got = memory.download();
  const std::vector<int32_t> rows{0, o.sequences - 1};
  const CheckResult check = check_result(problem.problem(), {got.out.data(), 0, 0}, got.lse.data(),
                                         std::span(rows).first(o.sequences > 1 ? 2 : 1));
  if (!check.passed()) {
    fmt::print(stderr, "lab_time: {}: error {}, allowed {}; lse {}, allowed {}\n", kernel.name,
               check.got.max_err_out, check.allowed.out, check.got.max_err_lse, check.allowed.lse);
    return false;
  }
  const CudaDeviceInfo device = cuda_device_info();
  const double roof = roof_us(o, cuda_profile());
  const Json json = {
      {"kernel", kernel.name},
      {"batch", o.sequences},
      {"q_heads", o.group * o.kv_heads},
      {"kv_heads", o.kv_heads},
      {"head_dim", kHeadDim},
      {"dtype", dtype_name(DType::kBF16)},
      {"prefix_tokens", o.prefix_tokens},
      {"suffix_tokens", o.suffix_tokens},
      {"device", device.name},
      {"sm_clock_mhz", device.sm_clock_mhz},
      {"cold", true},
      {"version", version()},
      {"commit", kGitCommit},
      {"run_us", {{"median", timing.median_us}, {"min", timing.min_us}, {"count", timing.count}}},
      {"roof_us", roof},
      {"pct_roof", 100 * roof / timing.median_us},
      {"max_err", check.got.max_err_out},
      {"tolerance", check.allowed.out},
      {"max_err_lse", check.got.max_err_lse},
      {"tolerance_lse", check.allowed.lse}};
  fmt::print("{}\n", json.dump());
  return true;
}

int run(const Options& o) {
  const Shape shape{o.group, o.kv_heads, o.prefix_tokens,
                    std::vector<int32_t>(o.sequences, o.suffix_tokens)};
  const LabCase problem(shape, 1);
  bool all_right = true;
  for (const Kernel& kernel : kKernels) all_right &= time_kernel(kernel, o, problem);
  return all_right ? 0 : 1;
}

}  // namespace
}  // namespace pando::lab

int main(int argc, char** argv) {
  pando::lab::Options o;
  CLI::App app("Times the lab's kernels on one shape: a JSON line each.");
  app.add_option("--sequences", o.sequences)->check(CLI::Range(1, 1 << 16))->capture_default_str();
  app.add_option("--group", o.group, "q heads of a kv head")
      ->check(CLI::Range(1, 128))
      ->capture_default_str();
  app.add_option("--kv-heads", o.kv_heads)->check(CLI::Range(1, 128))->capture_default_str();
  app.add_option("--prefix", o.prefix_tokens, "tokens")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--suffix", o.suffix_tokens, "tokens of each sequence")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  app.add_option("--reps", o.reps)->check(CLI::Range(1, 10000))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    if (const std::string why = pando::cuda_unavailable(); !why.empty()) {
      throw pando::Error(pando::ErrorCode::kUnsupported, why);
    }
    return pando::lab::run(o);
  } catch (const std::exception& error) {
    fmt::print(stderr, "lab_time: {}\n", error.what());
    return 1;
  }
}
