// pando calibrate: measures the constants of the cost model on this device and stores them.
#include "calibrate/calibrate.h"

#include <fmt/format.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "cases/files.h"
#include "cases/measure.h"
#include "cases/shapes_table.h"
#include "commands/calibrate_parts.h"
#include "commands/commands.h"
#include "commands/common.h"
#include "core/check.h"
#include "pando/cuda.h"
#include "pando/version.h"
#include "term/progress.h"

namespace pando::cli {
namespace {

constexpr int kRuns = 25;              // of a probe, and of a shape on CUDA
constexpr int kHostRuns = 10;          // of a shape on the CPU
constexpr double kDeviceMemory = 0.8;  // of what is free
// Of a shape on the CPU, so that all of them take seconds.
constexpr int64_t kHostKvBytes = 32 << 20;
constexpr double kHostFlops = 2e9;

ProfileOrigin origin_here(const ChosenBackend& backend) {
  ProfileOrigin origin;
  origin.date = now_utc();
  origin.version = version();
  origin.commit = commit();
  if (backend.is_cuda()) {
    const CudaDeviceInfo info = cuda_device_info();
    origin.device = info.name;
    origin.driver = cuda_version_text(info.driver_version);
    origin.clock_mhz = info.sm_clock_mhz;
  } else {
    origin.device = cpu_name();
    origin.clock_mhz = cpu_clock_mhz();
  }
  return origin;
}

void fit_points(Calibration& c) {
  c.fit = calibrate::fit(c.measured.points, c.measured.base);
  c.profile =
      calibrate::profile_of(*c.fit, c.measured.base, c.measured.origin.device + " (calibrated)");
}

Calibration calibrate_cuda(cases::Runner& runner, const ChosenBackend& backend) {
  Calibration c;
  c.backend = backend;
  c.measured.base = backend.profile(0);
  c.measured.origin = origin_here(backend);
  const std::vector<calibrate::Probe> probes = calibrate::probes(c.measured.base.workers);
  const calibrate::Stopwatch stopwatch = calibrate::device_stopwatch(runner, kRuns);
  // The card goes up to the clock of a busy one before anything counts.
  calibrate::measure(c.measured.base, std::span(probes).first(4), stopwatch, [](const auto&) {});
  term::Progress progress(static_cast<int64_t>(probes.size()));
  bool first = true;
  c.measured.points =
      calibrate::measure(c.measured.base, probes, stopwatch, [&](const calibrate::Probe& probe) {
        if (!first) progress.finish_one();
        first = false;
        progress.start(probe.text());
      });
  progress.clear();
  try {
    fit_points(c);
  } catch (const Error& error) {
    c.failure = error.message;  // what was measured is still worth a record
  }
  return c;
}

Calibration calibrate_cpu(const ChosenBackend& backend, int threads) {
  Calibration c;
  c.backend = backend;
  term::Progress progress(1);
  progress.start("bandwidth, peak and kernel rates");
  c.measured.base = backend.profile(threads);
  c.measured.origin = origin_here(backend);
  c.profile = measure_cpu_profile(threads);
  return c;
}

Calibration refit(const std::string& path) {
  const cases::Buffer bytes = cases::read_file(path);
  Calibration c;
  c.backend = {Backend::kCuda, "cuda (" + path + ")"};
  try {
    c.measured =
        calibrate::measured_from_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    fit_points(c);
  } catch (const Error& error) {
    fail(error.code, "{}: {}", path, error.message);
  }
  return c;
}

double scale_of(const cases::Shape& shape, const Calibration& c, bool timed) {
  if (!c.backend.is_cuda()) {
    return cases::scale_to_fit(shape, DType::kBF16, kHostKvBytes, kHostFlops);
  }
  if (!timed) return 1;
  const double free_bytes = static_cast<double>(cuda_device_info().free_bytes);
  return cases::scale_to_fit(shape, DType::kBF16, static_cast<int64_t>(kDeviceMemory * free_bytes),
                             std::numeric_limits<double>::infinity());
}

/// With a runner the shape is timed too; else its time is that of the record, if there is one.
Predicted predict(const cases::Shape& shape, const Calibration& c, cases::Runner* runner) {
  Predicted p{.shape = &shape,
              .scale = scale_of(shape, c, runner != nullptr),
              .stored_us = 0,
              .us = 0,
              .timed = {}};
  cases::Case problem = cases::shape_tables(cases::scaled(shape, p.scale), DType::kBF16);
  const Forest forest = discover(problem.tables.batch());
  p.stored_us = plan(forest, problem.attention(), c.measured.base).cost().predicted_us;
  const Plan ours = plan(forest, problem.attention(), c.profile);
  p.us = ours.cost().predicted_us;
  if (runner == nullptr) {
    const auto recorded = c.measured.shapes.find(shape.name);
    if (recorded != c.measured.shapes.end()) p.timed = recorded->second;
    return p;
  }
  if (!c.backend.is_cuda()) cases::fill_data(problem, {.unused = cases::Unused::kZero, .seed = 1});
  const int runs = c.backend.is_cuda() ? kRuns : kHostRuns;
  p.timed = cases::summarise(cases::time_plan(problem, ours, runs, *runner));
  return p;
}

}  // namespace

int run_calibrate(const CalibrateOptions& options) {
  std::vector<const cases::Shape*> shapes;
  for (const std::string& name : options.shapes) shapes.push_back(&cases::find_shape(name));
  if (shapes.empty()) {
    for (const cases::Shape& s : cases::shapes(cases::ShapeList::kShapes)) shapes.push_back(&s);
  }
  const bool again = !options.from.empty();
  std::optional<ChosenBackend> backend;
  if (!again) {
    backend = choose_backend(options.backend);
    check_threads(*backend, options.threads);
  }
  // Opened first: a bad path should not cost a measurement.
  std::optional<cases::AtomicFile> file;
  if (!options.out.empty()) file.emplace(options.out);

  std::optional<cases::Runner> runner;
  if (!again) runner.emplace(options.threads, backend->backend);
  const Calibration c = again                ? refit(options.from)
                        : backend->is_cuda() ? calibrate_cuda(*runner, *backend)
                                             : calibrate_cpu(*backend, options.threads);
  if (!c.failure.empty()) {
    fmt::print(stderr, "pando: {}\n", c.failure);
    if (options.json) fmt::print("{}\n", calibration_json(c, {}, options).dump());
    return 1;
  }
  std::vector<Predicted> predicted;
  term::Progress progress(static_cast<int64_t>(shapes.size()));
  for (const cases::Shape* shape : shapes) {
    progress.start(shape->name);
    predicted.push_back(predict(*shape, c, options.check ? &*runner : nullptr));
    progress.finish_one();
  }
  progress.clear();

  if (file) {
    file->write(profile_to_json(c.profile, c.measured.origin) + "\n");
    file->commit();
  }
  if (options.json) {
    fmt::print("{}\n", calibration_json(c, predicted, options).dump());
  } else {
    print_calibration(c, predicted, options);
  }
  return 0;
}

}  // namespace pando::cli
