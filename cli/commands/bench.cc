// pando bench: times the table's shapes with and without sharing, one JSON line a case.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>

#include "cases/files.h"
#include "cases/measure.h"
#include "cases/shapes_table.h"
#include "commands/commands.h"
#include "commands/common.h"
#include "core/check.h"
#include "pando/cpu.h"
#include "pando/version.h"
#include "term/progress.h"
#include "term/style.h"

namespace pando::cli {
namespace {

constexpr double kMostSecondsARun = 0.75;  // without sharing, at the measured speed
constexpr double kMemoryPart = 0.4;        // of what is free, for K and V

/// What every case of one bench has in common.
struct Bench {
  DType dtype;
  cases::KvOrder order;
  std::optional<double> scale;  ///< absent: as large as the machine allows
  DeviceProfile measured;       ///< bandwidth and peak of this machine, now
  std::string device, commit;
};

struct Row {
  const cases::Shape* shape;
  double scale;
  cases::Measurement m;
  double roof_us;
  bool bandwidth_bound;
  double pct_roof() const { return 100 * roof_us / m.shared.median_us; }
};

/// "auto", "0.25" or "1/4".
std::optional<double> parse_scale(const std::string& text) {
  if (text == "auto") return std::nullopt;
  char* end = nullptr;
  double value = std::strtod(text.c_str(), &end);
  if (*end == '/') {
    const char* const denominator = end + 1;
    value /= std::strtod(denominator, &end);
  }
  require(!text.empty() && *end == '\0' && value > 0 && value <= 1,
          "scale: got \"{}\", want auto or a number in (0, 1], such as 1/4", text);
  return value;
}

double peak_flops_per_us(const Bench& bench) {
  return bench.measured.rates[static_cast<size_t>(bench.dtype)].peak_flops_per_us;
}

/// The largest scale at which a run without sharing takes about a second and K and V fit.
double fitting_scale(const cases::Shape& shape, const Bench& bench) {
  const double seconds_us = kMostSecondsARun * 1e6;
  const double group = static_cast<double>(shape.q_heads) / shape.kv_heads;
  // Without sharing a KV element of e bytes is read for 2 * group FLOPs.
  const double flops_by_bandwidth = seconds_us * bench.measured.dram_bytes_per_us * 2 * group /
                                    static_cast<double>(dtype_bytes(bench.dtype));
  const double max_flops = std::min(seconds_us * peak_flops_per_us(bench), flops_by_bandwidth);
  const auto max_bytes = static_cast<int64_t>(kMemoryPart * static_cast<double>(available_bytes()));
  return cases::scale_to_fit(shape, bench.dtype, max_bytes, max_flops);
}

Row run_shape(const cases::Shape& shape, const Bench& bench, const BenchOptions& options,
              cases::Runner& runner) {
  Row row;
  row.shape = &shape;
  row.scale = bench.scale ? *bench.scale : fitting_scale(shape, bench);
  cases::Case problem = cases::shape_tables(cases::scaled(shape, row.scale), bench.dtype,
                                            bench.order, options.page_tokens);
  cases::fill_data(problem, {.unused = cases::Unused::kZero, .seed = 1});
  row.m = cases::measure(problem, {.reps = options.reps, .cold = !options.warm}, runner);
  const double bytes_us = static_cast<double>(row.m.bytes) / bench.measured.dram_bytes_per_us;
  const double flops_us = static_cast<double>(row.m.flops) / peak_flops_per_us(bench);
  row.bandwidth_bound = bytes_us >= flops_us;
  row.roof_us = std::max(bytes_us, flops_us);
  return row;
}

Json timing_json(const cases::Timing& t) {
  return {{"median", t.median_us}, {"min", t.min_us}, {"count", t.count}};
}

Json row_json(const Row& row, const Bench& bench, const BenchOptions& options) {
  const cases::Shape shape = cases::scaled(*row.shape, row.scale);
  const cases::Measurement& m = row.m;
  Json json = {{"shape", shape.name},
               {"batch", shape.batch()},
               {"q_heads", shape.q_heads},
               {"kv_heads", shape.kv_heads},
               {"head_dim", cases::kShapeHeadDim},
               {"dtype", dtype_name(bench.dtype)},
               {"layout", options.layout},
               {"page_tokens", options.page_tokens},
               {"nodes", shape.nodes},
               {"tokens", shape.tokens},
               {"scale", row.scale},
               {"backend", "cpu"},
               {"device", bench.device},
               {"simd", cpu_simd_name()},
               {"threads", bench.measured.workers}};
  if (const double mhz = cpu_clock_mhz(); mhz > 0) json["clock_mhz"] = mhz;
  json.update(Json{{"cold", !options.warm},
                   {"date", now_utc()},
                   {"version", version()},
                   {"commit", bench.commit},
                   {"bandwidth_gb_s", bench.measured.dram_bytes_per_us / 1e3},
                   {"peak_gflop_s", peak_flops_per_us(bench) / 1e3},
                   {"discover_us", m.discover_us},
                   {"plan_us", m.plan_us},
                   {"run_us", timing_json(m.shared)},
                   {"unshared_us", timing_json(m.unshared)},
                   {"ratio", m.ratio()},
                   {"bytes", m.bytes},
                   {"flops", m.flops},
                   {"roof_us", row.roof_us},
                   {"pct_roof", row.pct_roof()},
                   {"bound", row.bandwidth_bound ? "bandwidth" : "flops"},
                   {"max_err", m.check.got.max_err_out},
                   {"tolerance", m.check.allowed.out},
                   {"max_err_lse", m.check.got.max_err_lse},
                   {"tolerance_lse", m.check.allowed.lse}});
  return json;
}

void print_row(const Row& row, const term::Style& style) {
  const cases::Measurement& m = row.m;
  const std::string name = row.scale == 1
                               ? row.shape->name
                               : fmt::format("{} ×1/{:.3g}", row.shape->name, 1 / row.scale);
  const std::string ratio = fmt::format("{:>6.2f}×", m.ratio());
  fmt::print("{:<19} {:>9} {:>9} {:>9} {:>9} {} {:>9} {:>5.0f} %  {:<9} {:.1e}\n", name,
             term::time_text(m.discover_us), term::time_text(m.plan_us),
             term::time_text(m.shared.median_us), term::time_text(m.unshared.median_us),
             m.ratio() > 1.05 ? style.good(ratio) : ratio, term::time_text(row.roof_us),
             row.pct_roof(), row.bandwidth_bound ? "bandwidth" : "flops", m.check.got.max_err_out);
}

void print_head(const Bench& bench, const term::Style& style) {
  fmt::print("{}, {}, {} threads: {}, {}\n\n", bench.device, cpu_simd_name(),
             bench.measured.workers, bandwidth_text(bench.measured),
             peak_text(bench.measured, bench.dtype));
  fmt::print("{}\n",
             style.bold(fmt::format("{:<19} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9} {:>7}  {:<9} {}",
                                    "shape", "discover", "plan", "run", "unshared", "ratio", "roof",
                                    "of roof", "bound", "max err")));
}

std::vector<const cases::Shape*> chosen_shapes(const BenchOptions& options) {
  std::vector<const cases::Shape*> chosen;
  if (options.shapes.empty()) {
    for (const cases::Shape& shape : cases::shapes()) {
      if (shape.tree == options.trees) chosen.push_back(&shape);
    }
  }
  for (const std::string& name : options.shapes) chosen.push_back(&cases::find_shape(name));
  return chosen;
}

}  // namespace

int run_bench(const BenchOptions& options) {
  choose_backend(options.backend);
  check_threads(options.threads);
  require(options.reps >= 1 && options.reps <= 10000, "reps: got {}, want a number in [1, 10000]",
          options.reps);
  require(options.page_tokens >= 1 && options.page_tokens <= 256 &&
              (options.page_tokens & (options.page_tokens - 1)) == 0,
          "page-tokens: got {}, want a power of two in [1, 256]", options.page_tokens);
  Bench bench{.dtype = dtype_from_name(options.dtype),
              .order = order_from_name(options.layout),
              .scale = parse_scale(options.scale),
              .measured = {},
              .device = cpu_name(),
              .commit = commit()};
  const std::vector<const cases::Shape*> shapes = chosen_shapes(options);
  std::optional<cases::AtomicFile> file;  // opened first: a bad path should not cost an hour
  if (!options.out.empty()) file.emplace(options.out);
  bench.measured = measure_cpu_profile(options.threads);

  const term::Style style = term::Style::of(1);
  if (!options.json) print_head(bench, style);
  cases::Runner runner(options.threads);
  term::Progress progress(static_cast<int64_t>(shapes.size()));
  int wrong = 0;
  for (const cases::Shape* shape : shapes) {
    progress.start(shape->name);
    const Row row = run_shape(*shape, bench, options, runner);
    progress.finish_one();
    progress.clear();
    if (!row.m.check.passed()) {
      ++wrong;
      fmt::print(stderr, "{}: wrong answer, not recorded: error {:.3g}, allowed {:.3g}\n",
                 shape->name, row.m.check.got.max_err_out, row.m.check.allowed.out);
      continue;
    }
    const std::string line = row_json(row, bench, options).dump() + "\n";
    if (file) file->write(line);
    if (options.json) {
      fmt::print("{}", line);
    } else {
      print_row(row, style);
    }
    std::fflush(stdout);
  }
  if (file) file->commit();
  return wrong > 0 ? 1 : 0;
}

}  // namespace pando::cli
