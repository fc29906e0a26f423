// pando bench: times the table's shapes with and without sharing, one JSON line a case.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "cases/files.h"
#include "cases/measure.h"
#include "cases/shapes_table.h"
#include "commands/bench_parts.h"
#include "commands/commands.h"
#include "commands/common.h"
#include "core/check.h"
#include "pando/cuda.h"
#include "pando/version.h"
#include "term/progress.h"
#include "term/style.h"

namespace pando::cli {
namespace {

constexpr double kMostSecondsARun = 0.75;  // without sharing, at the measured speed
constexpr double kMemoryPart = 0.4;        // of what is free, for K and V
constexpr double kDeviceMemoryPart = 0.8;  // where it holds no second copy
constexpr int kDefaultReps = 10;
constexpr int kDefaultDeviceReps = 25;

/// What every case of one bench has in common.
struct Bench {
  ChosenBackend backend;
  DType dtype;
  std::optional<DType> kv_dtype;  ///< absent: as dtype
  cases::KvOrder order;
  std::optional<double> scale;  ///< absent: as large as the machine allows
  DeviceProfile ceilings;       ///< bandwidth and peak of the device
  std::string profile;          ///< the name of what plans are made for
  int reps;
  std::string commit;
  DType kv_dtype_or_default() const { return kv_dtype.value_or(dtype); }
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
  return bench.ceilings.rates[static_cast<size_t>(bench.dtype)].peak_flops_per_us;
}

/// The largest scale at which K and V fit and, on the CPU, a run without sharing takes about a
/// second.
double fitting_scale(const cases::Shape& shape, const Bench& bench) {
  if (bench.backend.is_cuda()) {
    const double free_bytes = static_cast<double>(cuda_device_info().free_bytes);
    return cases::scale_to_fit(shape, bench.kv_dtype_or_default(),
                               static_cast<int64_t>(kDeviceMemoryPart * free_bytes),
                               std::numeric_limits<double>::infinity());
  }
  const double seconds_us = kMostSecondsARun * 1e6;
  const double group = static_cast<double>(shape.q_heads) / shape.kv_heads;
  // Without sharing a KV element of e bytes is read for 2 * group FLOPs.
  const double flops_by_bandwidth = seconds_us * bench.ceilings.dram_bytes_per_us * 2 * group /
                                    static_cast<double>(dtype_bytes(bench.kv_dtype_or_default()));
  const double max_flops = std::min(seconds_us * peak_flops_per_us(bench), flops_by_bandwidth);
  const auto max_bytes = static_cast<int64_t>(kMemoryPart * static_cast<double>(available_bytes()));
  return cases::scale_to_fit(shape, bench.kv_dtype_or_default(), max_bytes, max_flops);
}

Row run_shape(const cases::Shape& shape, const Bench& bench, const BenchOptions& options,
              cases::Runner& runner) {
  Row row;
  row.shape = &shape;
  row.scale = bench.scale ? *bench.scale : fitting_scale(shape, bench);
  cases::Case problem = cases::shape_tables(cases::scaled(shape, row.scale), bench.dtype,
                                            bench.order, options.page_tokens, 0, bench.kv_dtype);
  // On a device K and V are made where they are needed.
  if (!bench.backend.is_cuda()) {
    cases::fill_data(problem, {.unused = cases::Unused::kZero, .seed = 1});
  }
  row.m = cases::measure(
      problem, {.reps = bench.reps, .cold = !options.warm, .plan = plan_options(options)}, runner);
  const double bytes_us = static_cast<double>(row.m.bytes) / bench.ceilings.dram_bytes_per_us;
  const double flops_us = static_cast<double>(row.m.flops) / peak_flops_per_us(bench);
  row.bandwidth_bound = bytes_us >= flops_us;
  row.roof_us = std::max(bytes_us, flops_us);
  return row;
}

Json row_json(const Row& row, const Bench& bench, const BenchOptions& options) {
  const cases::Shape shape = cases::scaled(*row.shape, row.scale);
  const cases::Measurement& m = row.m;
  Json json = shape_json(shape, options);
  json["scale"] = row.scale;
  json.update(bench.backend.device_json(bench.ceilings.workers));
  json.update(Json{{"cold", !options.warm},
                   {"batch_invariant", options.batch_invariant},
                   {"cut_tokens", options.batch_invariant ? options.cut_tokens : 0},
                   {"date", now_utc()},
                   {"version", version()},
                   {"commit", bench.commit},
                   {"command", options.command},
                   {"ceilings", bench.backend.is_cuda() ? "of the card's profile" : "measured now"},
                   {"bandwidth_gb_s", bench.ceilings.dram_bytes_per_us / 1e3},
                   {"peak_gflop_s", peak_flops_per_us(bench) / 1e3},
                   {"discover_us", m.discover_us},
                   {"plan_us", m.plan_us},
                   {"plan_bytes", m.plan_bytes},
                   {"profile", bench.profile},
                   {"predicted_us", m.predicted_us},
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
  if (bench.backend.is_cuda()) {
    json["run_with_upload_us"] = timing_json(m.shared_with_upload);
    for (const cases::StageTime& t : m.timeline) {
      json["timeline_cycles"][t.stage] = {{"min", t.min}, {"median", t.median}, {"max", t.max}};
    }
  }
  return json;
}

/// "1.02×" of an earlier time; nothing where there is none.
std::string against_text(std::optional<double> ratio, const term::Style& style) {
  if (!ratio) return "";
  const std::string text = fmt::format("  {:.2f}× the earlier time", *ratio);
  return *ratio > EarlierRecords::kMostSlower ? style.bad(text) : text;
}

void print_row(const Row& row, std::optional<double> against, const term::Style& style) {
  const cases::Measurement& m = row.m;
  const std::string name = row.scale == 1
                               ? row.shape->name
                               : fmt::format("{} ×1/{:.3g}", row.shape->name, 1 / row.scale);
  const std::string ratio = fmt::format("{:>6.2f}×", m.ratio());
  fmt::print("{:<19} {:>9} {:>9} {:>9} {:>9} {} {:>9} {:>5.0f} %  {:<9} {:.1e}{}\n", name,
             term::time_text(m.discover_us), term::time_text(m.plan_us),
             term::time_text(m.shared.median_us), term::time_text(m.unshared.median_us),
             m.ratio() > 1.05 ? style.good(ratio) : ratio, term::time_text(row.roof_us),
             row.pct_roof(), row.bandwidth_bound ? "bandwidth" : "flops", m.check.got.max_err_out,
             against_text(against, style));
}

void print_head(const Bench& bench, const term::Style& style) {
  fmt::print("{}: {}, {}{}\n\n", bench.backend.device_text(bench.ceilings.workers),
             bandwidth_text(bench.ceilings), peak_text(bench.ceilings, bench.dtype),
             bench.backend.is_cuda() ? " (of the card's profile)" : "");
  fmt::print("{}\n",
             style.bold(fmt::format("{:<19} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9} {:>7}  {:<9} {}",
                                    "shape", "discover", "plan", "run", "unshared", "ratio", "roof",
                                    "of roof", "bound", "max err")));
}

}  // namespace

PlanOptions plan_options(const BenchOptions& options) {
  return {.batch_invariant = options.batch_invariant, .cut_tokens = options.cut_tokens};
}

std::vector<cases::Shape> chosen_shapes(const BenchOptions& options) {
  require(options.head_dim >= 1 && options.head_dim <= 1 << 16,
          "head-dim: got {}, want a number in [1, 65536]", options.head_dim);
  std::vector<cases::Shape> chosen;
  for (const std::string& name : options.shapes) chosen.push_back(cases::find_shape(name));
  const cases::ShapeList list = options.trees        ? cases::ShapeList::kTrees
                                : options.seed_sweep ? cases::ShapeList::kSweep
                                : options.scale_axes ? cases::ShapeList::kScale
                                                     : cases::ShapeList::kShapes;
  if (chosen.empty()) chosen.assign(cases::shapes(list).begin(), cases::shapes(list).end());
  for (cases::Shape& shape : chosen) shape.head_dim = options.head_dim;
  return chosen;
}

Json shape_json(const cases::Shape& shape, const BenchOptions& options) {
  return {{"shape", shape.name},
          {"batch", shape.batch()},
          {"q_heads", shape.q_heads},
          {"kv_heads", shape.kv_heads},
          {"head_dim", shape.head_dim},
          {"dtype", dtype_name(dtype_from_name(options.dtype))},
          {"kv_dtype", options.kv_dtype.empty() ? options.dtype : options.kv_dtype},
          {"layout", options.layout},
          {"page_tokens", options.page_tokens},
          {"nodes", shape.nodes},
          {"tokens", shape.tokens}};
}

Json timing_json(const cases::Timing& t) {
  return {{"median", t.median_us}, {"min", t.min_us}, {"count", t.count}};
}

int run_bench(const BenchOptions& options) {
  require(!options.reps || (*options.reps >= 1 && *options.reps <= 10000),
          "reps: got {}, want a number in [1, 10000]", options.reps.value_or(0));
  require(options.page_tokens >= 1 && options.page_tokens <= 256 &&
              (options.page_tokens & (options.page_tokens - 1)) == 0,
          "page-tokens: got {}, want a power of two in [1, 256]", options.page_tokens);
  if (options.plan_only) return run_plan_bench(options);
  const Target target = choose_target(options.backend, options.profile, options.threads);
  const ChosenBackend& backend = target.backend;
  const int reps = options.reps.value_or(backend.is_cuda() ? kDefaultDeviceReps : kDefaultReps);
  Bench bench{.backend = backend,
              .dtype = dtype_from_name(options.dtype),
              .kv_dtype = kv_dtype_from_name(options.kv_dtype),
              .order = order_from_name(options.layout),
              .scale = parse_scale(options.scale),
              .ceilings = {},
              .profile = target.profile.name.data(),
              .reps = reps,
              .commit = commit()};
  const std::vector<cases::Shape> shapes = chosen_shapes(options);
  // Both are opened first: a bad path should not cost an hour.
  std::optional<EarlierRecords> earlier;
  if (!options.against.empty()) earlier.emplace(options.against);
  std::optional<cases::AtomicFile> file;
  if (!options.out.empty()) file.emplace(options.out);
  bench.ceilings = backend.is_cuda() ? cuda_profile() : measure_cpu_profile(options.threads);

  const term::Style style = term::Style::of(1);
  if (!options.json) print_head(bench, style);
  cases::Runner runner = options.profile.empty() ? cases::Runner(options.threads, backend.backend)
                                                 : cases::Runner(options.threads, target.profile);
  term::Progress progress(static_cast<int64_t>(shapes.size()));
  int wrong = 0;
  for (const cases::Shape& shape : shapes) {
    progress.start(shape.name);
    const Row row = run_shape(shape, bench, options, runner);
    progress.finish_one();
    progress.clear();
    if (!row.m.check.passed()) {
      ++wrong;
      fmt::print(stderr, "{}: wrong answer, not recorded: error {:.3g}, allowed {:.3g}\n",
                 shape.name, row.m.check.got.max_err_out, row.m.check.allowed.out);
      continue;
    }
    Json record = row_json(row, bench, options);
    const std::optional<double> against = earlier ? earlier->compare(record) : std::nullopt;
    const std::string line = record.dump() + "\n";
    if (file) file->write(line);
    if (options.json) {
      fmt::print("{}", line);
    } else {
      print_row(row, against, style);
    }
    std::fflush(stdout);
  }
  if (file) file->commit();
  const int slower = earlier ? earlier->report() : 0;
  return wrong > 0 || slower > 0 ? 1 : 0;
}

}  // namespace pando::cli
