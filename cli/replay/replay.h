// The engine of `pando replay`: decodes a trace, with and without sharing, step by step.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "replay/options.h"
#include "replay/scheduler.h"
#include "replay/trace.h"

namespace pando::replay {

/// One decode step. Both attends read the same inputs, in the same step, in alternating order.
struct StepRecord {
  int64_t step = 0;
  int32_t sequences = 0;
  int64_t tokens = 0;           ///< sum of kv_len
  int32_t shared_segments = 0;  ///< segments that the plan reads once for several sequences
  double update_us = 0;         ///< Forest::update; of the first step Forest::discover
  double plan_us = 0;
  double attend_us = 0;
  double unshared_plan_us = 0;
  double unshared_us = 0;         ///< attend without sharing
  int64_t kv_bytes = 0;           ///< KV bytes read
  int64_t unshared_kv_bytes = 0;  ///< KV bytes read without sharing
};

/// The largest errors of the sampled rows against the fp64 oracle, and what was allowed there.
struct OracleVerdict {
  int64_t rows = 0;        ///< rows checked, at every q head, with and without sharing
  double max_error = 0;    ///< absolute, of out
  double allowed = 0;      ///< of out, where error / allowed was largest
  double worst_share = 0;  ///< largest error / allowed, of out and of LSE
  bool passed = true;
};

struct ReplayResult {
  ReplayOptions options;
  int64_t requests = 0;  ///< in the trace
  int32_t threads = 0;   ///< or thread blocks
  std::string device;    ///< name of the profile
  std::string simd;      ///< or "CUDA"
  std::vector<StepRecord> steps;
  Counts counts;
  OracleVerdict oracle;
};

/// Called after each step.
using Progress = std::function<void(const StepRecord&)>;

/// Replays `trace`. Prompts are inserted through a PrefixTree and their KV is random, so prefill is
/// not timed. Throws kInvalidArgument for bad options and kOutOfPages when no request fits.
ReplayResult run_replay(const Trace& trace, const ReplayOptions& options,
                        const Progress& progress = {});

}  // namespace pando::replay
