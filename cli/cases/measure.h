// Times a case with and without sharing, in turns, so that both see the same machine.
#pragma once

#include <cstdint>

#include "cases/case.h"
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
};

struct Measurement {
  double discover_us = 0;  ///< best of a few, memory warm
  double plan_us = 0;
  Timing shared;      ///< Sharing::kAuto
  Timing unshared;    ///< Sharing::kNone
  int64_t bytes = 0;  ///< every KV byte once, q and out
  int64_t flops = 0;
  CheckResult check;  ///< of the shared run, on sampled rows
  double ratio() const { return unshared.median_us / shared.median_us; }
};

Measurement measure(const Case& problem, const MeasureOptions& options, Runner& runner);

}  // namespace pando::cases
