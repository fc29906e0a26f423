// The constants of a profile for CUDA that are measured, one by one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "pando/profile.h"

namespace pando::calibrate {

/// In the order in which they are fitted: the times of one are taken off the points of the next.
enum class Constant : uint8_t {
  kWholeTile,
  kSplitTile,
  kRun,
  kUnit,
  kMerge,
  kTurn,
  kLookup,
  kLaunch,
  kMemory,
  kCache,
  kL2,
};
inline constexpr size_t kConstants = 11;
std::array<Constant, kConstants> all_constants();

/// How often each constant counts in the time of a plan: times for the first eight, bytes for the
/// others.
using Counts = std::array<double, kConstants>;
inline double& count_of(Counts& counts, Constant c) { return counts[static_cast<size_t>(c)]; }
inline double count_of(const Counts& counts, Constant c) { return counts[static_cast<size_t>(c)]; }

/// Whether it is bytes in a microsecond and not microseconds.
bool is_rate(Constant constant);
/// The name of its field: "schedule.whole_tile_us", "dram_bytes_per_us".
std::string_view name_of(Constant constant);
/// Throws kInvalidArgument for a name that no constant has.
Constant constant_of_name(std::string_view name);
double& field_of(DeviceProfile& profile, Constant constant);
double field_of(const DeviceProfile& profile, Constant constant);

}  // namespace pando::calibrate
