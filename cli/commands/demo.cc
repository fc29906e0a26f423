// pando demo: a small forest, what is shared in it, and what that is worth. No arguments needed.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cases/generate.h"
#include "cases/measure.h"
#include "commands/commands.h"
#include "commands/common.h"
#include "core/check.h"
#include "term/picture.h"
#include "term/progress.h"
#include "term/style.h"

namespace pando::cli {
namespace {

constexpr int32_t kSystemPrompt = 1536;
constexpr int32_t kExamples = 512;  // few-shot examples: three tasks have them, one has none
constexpr int32_t kSamples = 16;    // of each task

/// Answers being sampled for four tasks under one system prompt, and one request of its own.
cases::Case demo_case() {
  cases::Rng rng(2026);
  cases::ForestShape shape;
  const int32_t root = shape.add_node(-1, kSystemPrompt);
  for (const int32_t examples : {kExamples, kExamples, 2 * kExamples, 0}) {
    const int32_t task = examples > 0 ? shape.add_node(root, examples) : root;
    for (int32_t sample = 0; sample < kSamples; ++sample) {
      shape.add_sequence(shape.add_node(task, static_cast<int32_t>(rng.between(17, 96))));
    }
  }
  shape.add_sequence(shape.add_node(-1, 700));
  cases::Case problem;
  problem.name = "demo";
  problem.tables = cases::page_tables(shape, {.page_tokens = 16}, rng);
  problem.spec.q_heads = 32;
  problem.spec.kv_heads = 8;
  problem.spec.head_dim = 128;
  cases::fill_data(problem, {.seed = 2026});
  return problem;
}

/// A bar of up to `cells` whole and half cells.
std::string bar(double part, int cells) {
  const auto halves = static_cast<int>(std::max(1L, std::lround(part * cells * 2)));
  std::string text;
  for (int i = 0; i < halves / 2; ++i) text += "━";
  if (halves % 2 == 1) text += "╸";
  return text;
}

Json demo_json(const cases::Case& problem, const Plan& plan, const cases::Measurement& m,
               const ChosenBackend& backend) {
  const auto decisions = plan.decisions();
  Json json = backend.device_json(plan.header().workers);
  json.update(
      Json{{"sequences", problem.tables.sequences()},
           {"q_heads", problem.spec.q_heads},
           {"kv_heads", problem.spec.kv_heads},
           {"head_dim", problem.spec.head_dim},
           {"dtype", dtype_name(problem.spec.dtype)},
           {"shared_segments", std::ranges::count(decisions, Reason::kShared, &Decision::reason)},
           {"kv_bytes", plan.cost().kv_bytes},
           {"unshared_kv_bytes", plan.cost().unshared_kv_bytes},
           {"discover_us", m.discover_us},
           {"plan_us", m.plan_us},
           {"run_us", m.shared.median_us},
           {"unshared_us", m.unshared.median_us},
           {"ratio", m.ratio()},
           {"max_err", m.check.got.max_err_out},
           {"tolerance", m.check.allowed.out},
           {"passed", m.check.passed()}});
  return json;
}

void print_demo(const cases::Case& problem, const Forest& forest, const Plan& plan,
                const cases::Measurement& m, const ChosenBackend& backend) {
  const term::Style style = term::Style::of(1);
  const auto unique = [&] {
    int64_t tokens = 0;
    for (const Segment& segment : forest.segments()) tokens += segment.tokens();
    return tokens;
  }();
  fmt::print("\n  {}  one decode step of {} sequences: {} query heads on {} kv heads of {}, {}\n",
             style.bold("pando"), problem.tables.sequences(), problem.spec.q_heads,
             problem.spec.kv_heads, problem.spec.head_dim, dtype_name(problem.spec.dtype));
  fmt::print("  {}\n\n",
             style.dim(fmt::format("{}, backend {}", backend.device_text(plan.header().workers),
                                   backend.text)));
  fmt::print("  {}\n\n{}\n", style.bold("The forest, found from the page tables alone"),
             term::forest_picture(forest, plan, style));
  fmt::print("  {} tokens of context, {} of them distinct: {} of KV to read instead of {}\n\n",
             term::grouped(problem.tables.tokens()), term::grouped(unique),
             term::bytes_text(static_cast<double>(plan.cost().kv_bytes)),
             term::bytes_text(static_cast<double>(plan.cost().unshared_kv_bytes)));

  const double longest = std::max(m.shared.median_us, m.unshared.median_us);
  const auto time_line = [&](const char* name, double us, bool is_shared) {
    const std::string line = bar(us / longest, 40);
    fmt::print("  {:<16} {} {}\n", name, is_shared ? style.good(line) : style.dim(line),
               style.bold(term::time_text(us)));
  };
  time_line("without sharing", m.unshared.median_us, false);
  time_line("shared", m.shared.median_us, true);
  fmt::print("\n  {} faster; finding the forest took {}, planning {}\n",
             style.bold(style.good(fmt::format("{:.1f}×", m.ratio()))),
             term::time_text(m.discover_us), term::time_text(m.plan_us));
  const std::string verdict =
      fmt::format("largest error {:.2e}, allowed {:.2e}: {}", m.check.got.max_err_out,
                  m.check.allowed.out, m.check.passed() ? "correct" : "WRONG");
  fmt::print("  {} (against an fp64 reference)\n\n",
             m.check.passed() ? verdict : style.bad(verdict));
}

}  // namespace

int run_demo(const DemoOptions& options) {
  const ChosenBackend backend = choose_backend(options.backend);
  check_threads(backend, options.threads);
  require(options.reps >= 1 && options.reps <= 1000, "reps: got {}, want a number in [1, 1000]",
          options.reps);
  term::Progress progress(3);
  progress.start("filling pages");
  const cases::Case problem = demo_case();
  progress.finish_one();
  progress.start("attending, with and without sharing");
  cases::Runner runner(options.threads, backend.backend);
  const cases::Measurement m = cases::measure(problem, {.reps = options.reps}, runner);
  progress.finish_one();
  progress.clear();

  const Forest forest = discover(problem.tables.batch());
  const Plan plan = pando::plan(forest, problem.attention(), runner.planner(0).profile());
  if (options.json) {
    fmt::print("{}\n", demo_json(problem, plan, m, backend).dump());
  } else {
    print_demo(problem, forest, plan, m, backend);
  }
  return m.check.passed() ? 0 : 1;
}

}  // namespace pando::cli
