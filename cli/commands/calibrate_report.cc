// pando calibrate: what it says, for programs and for readers.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "commands/bench_parts.h"
#include "commands/calibrate_parts.h"
#include "term/style.h"

namespace pando::cli {
namespace {

using calibrate::Fitted;

constexpr double kWithin = 0.2;  ///< of the time, where a prediction counts as right

bool is_close(const Predicted& p) { return std::abs(p.ratio() - 1) <= kWithin; }

/// Of the shapes that were timed, how many are predicted.
struct Verdict {
  int timed = 0;
  int close = 0;
  double share() const { return static_cast<double>(close) / timed; }
};

Verdict verdict_of(const std::vector<Predicted>& all) {
  Verdict verdict;
  for (const Predicted& p : all) {
    if (!p.timed) continue;
    ++verdict.timed;
    verdict.close += is_close(p) ? 1 : 0;
  }
  return verdict;
}

std::string value_text(const Fitted& f, double value) {
  return calibrate::is_rate(f.constant) ? fmt::format("{:.3g} TB/s", value / 1e6)
                                        : fmt::format("{:.3g} µs", value);
}

void print_fit(const Calibration& c, const term::Style& style) {
  fmt::print("{}\n", style.bold(fmt::format("{:<26} {:>11} {:>15} {:>11}  {}", "constant", "value",
                                            "spread", "stored", "points")));
  for (const Fitted& f : *c.fit) {
    const double stored = calibrate::field_of(c.measured.base, f.constant);
    fmt::print("{:<26} {:>11} {:>15} {:>11}  {}\n", calibrate::name_of(f.constant),
               value_text(f, f.value), f.measured ? "± " + value_text(f, f.spread) : "not measured",
               value_text(f, stored), f.points);
  }
}

/// Every number of the profile that differs from the stored one.
void print_changed(const Calibration& c, const term::Style& style) {
  const Json now = Json::parse(profile_to_json(c.profile)).flatten();
  const Json before = Json::parse(profile_to_json(c.measured.base)).flatten();
  fmt::print("{}\n",
             style.bold(fmt::format("{:<32} {:>12} {:>12}", "constant", "value", "stored")));
  for (const auto& [key, value] : now.items()) {
    if (!value.is_number() || !before.contains(key) || value == before[key]) continue;
    std::string name = key.substr(1);
    std::ranges::replace(name, '/', '.');
    fmt::print("{:<32} {:>12.6g} {:>12.6g}\n", name, value.get<double>(),
               before[key].get<double>());
  }
}

void print_shapes(const std::vector<Predicted>& shapes, const term::Style& style) {
  const Verdict verdict = verdict_of(shapes);
  fmt::print("\n{}\n", style.bold(fmt::format(
                           "{:<19} {:>10} {:>10}{}", "shape", "predicted", "stored",
                           verdict.timed > 0 ? fmt::format(" {:>10} {:>7}", "run", "ratio") : "")));
  for (const Predicted& p : shapes) {
    const std::string name =
        p.scale == 1 ? p.shape->name : fmt::format("{} ×1/{:.3g}", p.shape->name, 1 / p.scale);
    fmt::print("{:<19} {:>10} {:>10}", name, term::time_text(p.us), term::time_text(p.stored_us));
    if (p.timed) {
      const std::string ratio = fmt::format("{:>6.2f}×", p.ratio());
      fmt::print(" {:>10} {}", term::time_text(p.timed->median_us),
                 is_close(p) ? style.good(ratio) : style.bad(ratio));
    }
    fmt::print("\n");
  }
  if (verdict.timed > 0) {
    fmt::print("\n{} of {} predictions are within {:.0f} % of the time ({:.0f} %)\n", verdict.close,
               verdict.timed, 100 * kWithin, 100 * verdict.share());
  }
}

}  // namespace

Json calibration_json(const Calibration& c, const std::vector<Predicted>& shapes,
                      const CalibrateOptions& options) {
  Json json = {{"command", options.command}};
  json.update(calibrate::to_json(c.measured));
  if (!c.failure.empty()) {
    json["failure"] = c.failure;
    return json;
  }
  if (c.fit) json["constants"] = calibrate::to_json(*c.fit, c.measured.base);
  json["profile"] = Json::parse(profile_to_json(c.profile, c.measured.origin));
  json["shapes"] = Json::array();
  for (const Predicted& p : shapes) {
    Json row = {{"shape", p.shape->name},
                {"scale", p.scale},
                {"predicted_us", p.us},
                {"stored_predicted_us", p.stored_us}};
    if (p.timed) {
      row["run_us"] = timing_json(*p.timed);
      row["ratio"] = p.ratio();
    }
    json["shapes"].push_back(std::move(row));
  }
  const Verdict verdict = verdict_of(shapes);
  if (verdict.timed > 0) json["share_within_20_pct"] = verdict.share();
  return json;
}

void print_calibration(const Calibration& c, const std::vector<Predicted>& shapes,
                       const CalibrateOptions& options) {
  const term::Style style = term::Style::of(1);
  fmt::print("{}, backend {}\n\n", c.measured.origin.device, c.backend.text);
  if (c.fit) {
    print_fit(c, style);
  } else {
    print_changed(c, style);
  }
  print_shapes(shapes, style);
  if (!options.out.empty()) {
    fmt::print("\n{} holds the profile; plans are made for it with --profile {}\n", options.out,
               options.out);
  }
}

}  // namespace pando::cli
