#include "calibrate/fit.h"

#include <algorithm>
#include <cmath>

#include "cases/measure.h"
#include "core/check.h"

namespace pando::calibrate {
namespace {

/// A slope with its standard error; none where x does not vary or there are fewer than three
/// points.
struct Line {
  bool found = false;
  double slope = 0;
  double error = 0;
};

Line line_through(std::span<const double> x, std::span<const double> y) {
  const auto n = static_cast<double>(x.size());
  double mean_x = 0, mean_y = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    mean_x += x[i] / n;
    mean_y += y[i] / n;
  }
  double xx = 0, xy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    xy += (x[i] - mean_x) * (y[i] - mean_y);
  }
  if (x.size() < 3 || xx <= 0) return {};
  const double slope = xy / xx;
  double left = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double off = y[i] - mean_y - slope * (x[i] - mean_x);
    left += off * off;
  }
  return {true, slope, std::sqrt(left / (n - 2) / xx)};
}

/// The mean, with its standard error.
Line mean_of(std::span<const double> y) {
  if (y.size() < 3) return {};
  const auto n = static_cast<double>(y.size());
  double mean = 0, left = 0;
  for (const double us : y) mean += us / n;
  for (const double us : y) left += (us - mean) * (us - mean);
  return {true, mean, std::sqrt(left / (n - 1) / n)};
}

bool is_tile(Constant c) { return c == Constant::kWholeTile || c == Constant::kSplitTile; }

}  // namespace

double Point::median_us() const {
  require(!us.empty(), "points: got \"{}\" without a time, want one or more", text);
  return cases::summarise(us).median_us;
}

Fit fit(std::span<const Point> points, const DeviceProfile& base) {
  Fit result;
  DeviceProfile known = base;
  for (const Constant constant : all_constants()) {
    Fitted& fitted = result[static_cast<size_t>(constant)];
    fitted = {.constant = constant, .value = field_of(base, constant)};
    std::vector<double> x, y;
    for (const Point& point : points) {
      if (point.constant != constant) continue;
      x.push_back(count_of(point.counts, constant));
      y.push_back(point.median_us());
    }
    fitted.points = static_cast<int>(x.size());
    const auto line_of = [&](std::span<const double> values) {
      return constant == Constant::kLaunch ? mean_of(values) : line_through(x, values);
    };
    double known_variance = 0;  // that comes with what is taken off
    for (const Constant other : all_constants()) {
      if (other >= constant || is_rate(constant)) break;
      std::vector<double> counts;
      for (const Point& point : points) {
        if (point.constant == constant) counts.push_back(count_of(point.counts, other));
      }
      for (size_t i = 0; i < y.size(); ++i) y[i] -= counts[i] * field_of(known, other);
      const double off = line_of(counts).slope * result[static_cast<size_t>(other)].spread;
      known_variance += off * off;
    }
    const Line line = line_of(y);
    if (!line.found) continue;
    fitted.measured = true;
    const double error = std::sqrt(line.error * line.error + known_variance);
    require(
        (line.slope > 0 || (!is_rate(constant) && !is_tile(constant))) && std::isfinite(line.slope),
        "{}: got {:.3g} us {} from the measured times, want more than 0; does other work run "
        "on the card?",
        name_of(constant), line.slope, is_rate(constant) ? "a byte" : "each");
    fitted.value = is_rate(constant) ? 1 / line.slope : std::max(0.0, line.slope);
    fitted.spread = is_rate(constant) ? fitted.value * error / line.slope : error;
    field_of(known, constant) = fitted.value;
  }
  return result;
}

DeviceProfile profile_of(const Fit& fit, const DeviceProfile& base, const std::string& name) {
  DeviceProfile profile = base;
  for (const Fitted& fitted : fit) {
    if (fitted.measured) field_of(profile, fitted.constant) = fitted.value;
  }
  profile.name.fill('\0');
  std::copy_n(name.begin(), std::min(name.size(), profile.name.size() - 1), profile.name.begin());
  return profile;
}

}  // namespace pando::calibrate
