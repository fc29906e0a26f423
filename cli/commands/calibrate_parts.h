// What `pando calibrate` is made of besides its course.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "calibrate/calibrate.h"
#include "cases/measure.h"
#include "cases/shapes_table.h"
#include "commands/commands.h"
#include "commands/common.h"

namespace pando::cli {

/// What one run found.
struct Calibration {
  ChosenBackend backend;
  calibrate::Measured measured;       ///< its base is the stored profile; points are those of CUDA
  std::optional<calibrate::Fit> fit;  ///< CUDA
  std::string failure;                ///< why the points give no profile
  DeviceProfile profile;              ///< with what was measured
};

/// A shape with the times that are predicted for it, and its time.
struct Predicted {
  const cases::Shape* shape;
  double scale;
  double stored_us;  ///< by the stored profile
  double us;         ///< by the new one
  std::optional<cases::Timing> timed;
  double ratio() const { return us / timed->median_us; }
};

/// The record: the command, every point, the constants, the profile, the shapes.
Json calibration_json(const Calibration& c, const std::vector<Predicted>& shapes,
                      const CalibrateOptions& options);
/// The same for a reader, without the points.
void print_calibration(const Calibration& c, const std::vector<Predicted>& shapes,
                       const CalibrateOptions& options);

}  // namespace pando::cli
