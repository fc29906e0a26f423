// Times a case with and without sharing, in turns, so that both see the same machine.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cases/case.h"
#include "cases/device.h"
#include "cases/runner.h"
#include "pando/profile.h"

namespace pando::cases {

/// Times of the same thing, done `count` times.
struct Timing {
  double median_us = 0;
  double min_us = 0;
  int count = 0;
};

struct MeasureOptions {
  int threads = 0;  ///< 0: the runner's default
  int reps = 10;
  bool cold = true;  ///< every run takes another copy of K and V, more of them than caches hold
  PlanOptions plan = {};  ///< of the run with sharing
};

struct Measurement {
  double discover_us = 0;  ///< best of a few, memory warm
  double plan_us = 0;
  Timing shared;    ///< Sharing::kAuto
  Timing unshared;  ///< Sharing::kNone
  /// CUDA: the same replay with the plan's upload in the graph; none on the CPU.
  Timing shared_with_upload;
  std::vector<StageTime> timeline;  ///< CUDA, in builds with PANDO_TIMELINE: of the last replay
  int64_t plan_bytes = 0;           ///< of the whole plan
  double predicted_us = 0;          ///< by the plan's cost model
  int64_t bytes = 0;                ///< every KV byte once, q and out
  int64_t flops = 0;
  CheckResult check;  ///< of the shared run, on sampled rows
  double ratio() const { return unshared.median_us / shared.median_us; }
};

/// On the CPU every run is a call; on CUDA it is a replay of a graph, timed by events. A case
/// without data is given normal numbers on the device (CUDA only).
Measurement measure(const Case& problem, const MeasureOptions& options, Runner& runner);

/// Microseconds of each of `reps` runs of a plan of the case, timed as measure() times them. On the
/// CPU the case must have data.
std::vector<double> time_plan(const Case& problem, const Plan& plan, int reps, Runner& runner);

/// What a step costs the host before attend.
struct PlanningTimes {
  int64_t page_ids = 0;
  Timing discover;
  Timing update;  ///< of the forest, after a decode step
  Timing plan;
};

/// Of a case without data; `plan` is the one that was made last.
PlanningTimes measure_planning(const Case& problem, const PlanOptions& options, int reps,
                               Planner& planner, Plan& plan);

/// Median, least and count.
Timing summarise(std::vector<double> us);
/// The least time of a few calls.
double best_of(int times, const std::function<void()>& body);
/// Bytes and FLOPs of a case, from which its roof follows.
void count_work(const Case& problem, const Forest& forest, const Plan& plan, Measurement& result);
Measurement measure_on_device(const Case& problem, const MeasureOptions& options, Runner& runner);
std::vector<double> time_plan_on_device(const Case& problem, const Plan& plan, int reps,
                                        Runner& runner);

inline constexpr int64_t kOracleBudget = int64_t{1} << 27;  ///< multiplications of one check

}  // namespace pando::cases
