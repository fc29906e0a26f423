// What a replay simulates, and on which model shape.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "pando/attention.h"
#include "pando/profile.h"

namespace pando::replay {

/// A factor on all lengths of a trace, so that long real prompts fit small machines.
struct Scale {
  int64_t numerator = 1;
  int64_t denominator = 1;

  /// "1/16" or "2"; throws kInvalidArgument unless both parts are in [1, 2^20].
  static Scale parse(std::string_view text);
  /// Tokens that stand for `tokens` of the trace, rounded down.
  int64_t apply(int64_t tokens) const { return tokens * numerator / denominator; }
};

struct ReplayOptions {
  int32_t slots = 64;             ///< sequences decoded at once, at most
  int32_t samples = 1;            ///< answers sampled for each request, by forking its prompt
  int64_t pool_tokens = 1 << 17;  ///< KV memory in tokens, rounded up to whole pages
  int32_t page_tokens = 16;
  Scale scale;
  int64_t steps = 200;  ///< decode steps; 0: until the trace ends
  int32_t repeats = 1;  ///< times that both attends of a step run; the fastest of each counts
  double step_ms = 0;   ///< time of a step on the trace's clock; 0: no arrival gaps
  int32_t q_heads = 32;
  int32_t kv_heads = 8;
  int32_t head_dim = 128;
  DType dtype = DType::kBF16;
  Backend backend = Backend::kCpu;
  int32_t threads = 0;                   ///< 0: all cores
  std::optional<DeviceProfile> profile;  ///< that of the backend when absent
  uint64_t seed = 0;
  int64_t check_every = 20;  ///< steps between oracle checks; 0: never
  int32_t check_rows = 4;    ///< sequences that one check covers, at most

  int64_t num_pages() const { return (pool_tokens + page_tokens - 1) / page_tokens; }
  /// Throws kInvalidArgument naming the option, what it got and what was wanted.
  void check() const;
};

}  // namespace pando::replay
