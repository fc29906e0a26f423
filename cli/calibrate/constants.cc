#include "calibrate/constants.h"

#include "core/check.h"

namespace pando::calibrate {

std::array<Constant, kConstants> all_constants() {
  std::array<Constant, kConstants> all;
  for (size_t i = 0; i < kConstants; ++i) all[i] = static_cast<Constant>(i);
  return all;
}

bool is_rate(Constant constant) { return constant >= Constant::kMemory; }

std::string_view name_of(Constant constant) {
  switch (constant) {
    case Constant::kWholeTile: return "schedule.whole_tile_us";
    case Constant::kSplitTile: return "schedule.split_tile_us";
    case Constant::kRun: return "schedule.run_us";
    case Constant::kUnit: return "schedule.unit_us";
    case Constant::kMerge: return "schedule.merge_us";
    case Constant::kTurn: return "schedule.turn_us";
    case Constant::kLookup: return "schedule.lookup_us";
    case Constant::kLaunch: return "launch_us";
    case Constant::kMemory: return "dram_bytes_per_us";
    case Constant::kCache: return "cache_bytes_per_us";
    case Constant::kL2: return "schedule.l2_bytes_per_us";
  }
  return "unknown";
}

Constant constant_of_name(std::string_view name) {
  for (const Constant constant : all_constants()) {
    if (name_of(constant) == name) return constant;
  }
  fail(ErrorCode::kInvalidArgument, "constant: got \"{}\", want a field such as {}", name,
       name_of(Constant::kWholeTile));
}

double& field_of(DeviceProfile& p, Constant constant) {
  switch (constant) {
    case Constant::kWholeTile: return p.schedule.whole_tile_us;
    case Constant::kSplitTile: return p.schedule.split_tile_us;
    case Constant::kRun: return p.schedule.run_us;
    case Constant::kUnit: return p.schedule.unit_us;
    case Constant::kMerge: return p.schedule.merge_us;
    case Constant::kTurn: return p.schedule.turn_us;
    case Constant::kLookup: return p.schedule.lookup_us;
    case Constant::kLaunch: return p.launch_us;
    case Constant::kMemory: return p.dram_bytes_per_us;
    case Constant::kCache: return p.cache_bytes_per_us;
    case Constant::kL2: break;
  }
  return p.schedule.l2_bytes_per_us;
}

double field_of(const DeviceProfile& profile, Constant constant) {
  DeviceProfile copy = profile;
  return field_of(copy, constant);
}

}  // namespace pando::calibrate
