// Measuring all points, and the record that holds them.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "calibrate/fit.h"
#include "calibrate/probes.h"
#include "cases/measure.h"
#include "cases/runner.h"

namespace pando::calibrate {

using Json = nlohmann::ordered_json;

/// Who times what the probes say: a card, or a test in its place.
struct Stopwatch {
  /// Microseconds of each of some runs of a plan.
  std::function<std::vector<double>(const cases::Case&, const Plan&)> plan;
  /// The same for reads.
  std::function<std::vector<double>(const Probe&)> reads;
};

/// Replays on the runner's CUDA device, `runs` of each probe, L2 overwritten before each.
Stopwatch device_stopwatch(cases::Runner& runner, int runs);

/// What was measured on one card.
struct Measured {
  DeviceProfile base;  ///< the card's stored profile, for which the plans were made
  ProfileOrigin origin;
  std::vector<Point> points;
  std::map<std::string, cases::Timing> shapes;  ///< by name, of those timed at full size
};

/// Times every probe, in turn; `start` is called before each.
std::vector<Point> measure(const DeviceProfile& base, std::span<const Probe> probes,
                           const Stopwatch& stopwatch,
                           const std::function<void(const Probe&)>& start);

/// {"base": profile, "points": [{"constant", "what", "counts", "us": times of all runs}]}.
Json to_json(const Measured& measured);
/// Of such an object, which may have other keys too: of "shapes" [{"shape", "scale", "run_us"}] the
/// times are taken. Throws kInvalidArgument naming what is wrong.
Measured measured_from_json(std::string_view text);
/// [{"constant", "value", "spread", "stored", "measured", "points"}].
Json to_json(const Fit& fit, const DeviceProfile& base);

}  // namespace pando::calibrate
