// pando replay: decodes a trace of requests step by step, with and without sharing.
#include "replay/replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "commands/commands.h"
#include "commands/common.h"
#include "replay/report.h"
#include "replay/trace.h"
#include "term/progress.h"

namespace pando::cli {

int run_replay(const ReplayCommandOptions& options) {
  const ChosenBackend backend = choose_backend(options.backend);
  check_threads(backend, options.threads);
  replay::ReplayOptions engine = options.engine;
  engine.scale = replay::Scale::parse(options.scale);
  engine.dtype = dtype_from_name(options.dtype);
  engine.backend = backend.backend;
  engine.threads = options.threads;
  if (engine.slots > 0) engine.check_rows = std::min(engine.check_rows, engine.slots);
  engine.check();
  const replay::Trace trace = replay::read_trace(options.trace);

  term::Progress progress(engine.steps);
  const replay::ReplayResult result =
      replay::run_replay(trace, engine, [&](const replay::StepRecord& step) {
        progress.start(fmt::format("{} sequences, {} tokens", step.sequences, step.tokens));
        progress.finish_one();
      });
  progress.clear();
  if (options.json) {
    nlohmann::json json = replay::to_json(result);
    if (!options.steps_too) json.erase("steps");
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("{}", replay::to_text(result));
  }
  return result.oracle.passed ? 0 : 1;
}

}  // namespace pando::cli
