// What a replay showed, for people and for programs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "replay/replay.h"

namespace pando::replay {

/// Middle and tail of one quantity over all steps.
struct Spread {
  double median = 0;
  double p99 = 0;
};
/// Nearest-rank percentiles; zeros when there are no values.
Spread spread(std::vector<double> values);

struct Summary {
  int64_t steps = 0;
  int64_t decoded_tokens = 0;
  int64_t shared_steps = 0;  ///< steps in which the plan shares at least one segment
  Spread update_us, plan_us, attend_us, unshared_us;
  Spread ratio;            ///< attend_us / unshared_us of the same step
  Spread shared_ratio;     ///< the same, over the shared steps only
  double total_ratio = 0;  ///< all update + plan + attend time / all unshared time,
                           ///< which holds no update and its own planning
  int64_t kv_bytes = 0;
  int64_t unshared_kv_bytes = 0;
};
Summary summarise(const ReplayResult& result);

/// A few lines of text; ends with a newline.
std::string to_text(const ReplayResult& result);
/// {"options", "device", "summary", "counts", "oracle", "steps": [...]}; names as in the structs.
nlohmann::json to_json(const ReplayResult& result);

}  // namespace pando::replay
