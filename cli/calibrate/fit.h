// From measured times to constants: a pure function, with no clock in it.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "calibrate/constants.h"

namespace pando::calibrate {

/// Times of one probe.
struct Point {
  Constant constant;       ///< for which it was measured
  std::string text;        ///< what was run
  Counts counts{};         ///< what its predicted time is made of
  std::vector<double> us;  ///< of each run
  double median_us() const;
};

/// One constant as the points give it.
struct Fitted {
  Constant constant;
  bool measured = false;  ///< false: too few points, the value is that of the base
  double value = 0;       ///< microseconds, or bytes in a microsecond
  double spread = 0;      ///< standard error, with that of what is taken off; in the value's unit
  int points = 0;
};
using Fit = std::array<Fitted, kConstants>;

/// Each constant is the slope of a line by least squares, with an intercept of its own, through the
/// medians of its points: time against the constant's count. What other constants fitted before
/// contribute by counts that differ among these points is taken off the times first; what is the
/// same for all of them goes into the intercept. A rate is the inverse of the slope of time against
/// bytes. launch_us is no slope: it is the mean of what all other constants leave of its points.
///
/// A time that comes out below 0 is 0. Throws kInvalidArgument, naming the constant, for a tile
/// time or a rate that is not positive: other work ran on the card.
Fit fit(std::span<const Point> points, const DeviceProfile& base);

/// `base` with what was measured, and `name`, cut to what a profile holds.
DeviceProfile profile_of(const Fit& fit, const DeviceProfile& base, const std::string& name);

}  // namespace pando::calibrate
