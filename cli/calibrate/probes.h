// What is timed: small plans, fixed for a number of thread blocks, and reads. Those of one constant
// differ in the count of that constant, and in no other that is fitted before it or with it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "calibrate/constants.h"
#include "cases/case.h"
#include "pando/plan.h"

namespace pando::calibrate {

/// One thing to be timed for one constant: a plan, or passes over memory.
struct Probe {
  Constant constant;
  int32_t thread_blocks = 0;
  // A plan of `sequences` that are nothing but one prefix of `tokens`, or, where `apart`, share
  // nothing and have `tokens` each.
  int32_t kv_heads = 0;
  int32_t group = 0;
  int32_t sequences = 0;
  int32_t tokens = 0;
  bool apart = false;
  // Reads: `passes` over memory that L2 holds, so many thread blocks on the same bytes at once.
  int32_t passes = 0;
  int32_t sharers = 0;

  bool is_plan() const { return passes == 0; }
  /// "whole_tile_us: 132 thread blocks, 33 kv heads, 512 rows, 1024 tokens".
  std::string text() const;
};

inline constexpr int64_t kReadBytes = 16 << 20;  ///< of one pass

/// All probes for a card with so many multiprocessors. What takes more thread blocks than there are
/// is left out: its constant then keeps its value.
std::vector<Probe> probes(int32_t multiprocessors);

/// The case of a plan, without data: bf16, head_dim 128, pages of 64.
cases::Case case_of(const Probe& probe);
/// Its plan for `base`, of which the number of workers is replaced.
Plan plan_of(const Probe& probe, const cases::Case& problem, const DeviceProfile& base);

/// What a plan's predicted time is made of: the counts of the thread block with the longest time
/// under `cost`, and those of merging.
Counts counts_of(const Plan& plan, const ScheduleCost& cost);
/// The bytes that passes over memory deliver.
Counts counts_of_reads(const Probe& probe);

}  // namespace pando::calibrate
