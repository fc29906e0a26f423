// pando plan: what would be shared in a case, and why.
#include "pando/plan.h"

#include <fmt/format.h>

#include "cases/case_file.h"
#include "commands/commands.h"
#include "commands/common.h"
#include "core/check.h"
#include "term/picture.h"
#include "term/style.h"

namespace pando::cli {
namespace {

Sharing parse_sharing(std::string_view name) {
  if (name == "auto") return Sharing::kAuto;
  if (name == "none") return Sharing::kNone;
  if (name == "all") return Sharing::kAll;
  fail(ErrorCode::kInvalidArgument, "sharing: got \"{}\", want one of auto, none, all", name);
}

void print_items(const Plan& plan) {
  if (plan.header().backend == Backend::kCuda) {
    fmt::print("\n  plans for CUDA have a schedule instead of items\n");
    return;
  }
  fmt::print("\n  {:>6}  {:>17}  {:>17}  {:>8}  mask\n", "item", "tokens", "packed rows",
             "partial");
  int index = 0;
  for (const WorkItem& item : plan.items()) {
    fmt::print("  {:>6}  {:>8}–{:<8}  {:>8}–{:<8}  {:>8}  {}\n", index++, item.token_begin,
               item.token_end, item.packed_begin, item.packed_end,
               item.partial < 0 ? "–" : fmt::format("{}", item.partial),
               item.full != 0 ? "none" : "needed");
  }
}

}  // namespace

int run_plan(const PlanCommandOptions& options) {
  // A profile names a backend by itself: no device is looked for then.
  const ChosenBackend backend =
      options.profile.empty() ? choose_backend(options.backend) : choose_backend("cpu");
  check_threads(backend, options.threads);
  const PlanOptions how{.sharing = parse_sharing(options.sharing),
                        .batch_invariant = options.batch_invariant,
                        .cut_tokens = options.cut_tokens};
  const DeviceProfile profile = options.profile.empty()
                                    ? backend.profile(options.threads)
                                    : profile_of_name(options.profile, options.threads);
  const cases::Case problem = cases::read_case(options.file);
  const Forest forest = discover(problem.tables.batch());
  const Plan plan = pando::plan(forest, problem.attention(), profile, how);
  if (options.json) {
    fmt::print("{}\n", to_json(plan, options.items));
    return 0;
  }
  const term::Style style = term::Style::of(1);
  fmt::print("{}\n\n{}\n{}", style.bold(problem.name), term::forest_picture(forest, plan, style),
             explain(plan));
  if (options.items) print_items(plan);
  return 0;
}

}  // namespace pando::cli
