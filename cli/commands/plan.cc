// pando plan: what would be shared in a case, and why.
#include "pando/plan.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

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

/// "cpu", "h100" or that of the backend. Plans for a device can be made without it.
DeviceProfile parse_profile(const std::string& name, const ChosenBackend& backend, int threads) {
  if (name.empty()) return backend.profile(threads);
  if (name == "cpu") return cpu_profile(threads);
  require(name == "h100", "profile: got \"{}\", want one of cpu, h100", name);
  require(threads == 0, "threads: got {}, which only the profile cpu takes", threads);
  return h100_profile();
}

Json item_json(const WorkItem& item) {
  return {{"token_begin", item.token_begin},
          {"token_end", item.token_end},
          {"packed_begin", item.packed_begin},
          {"packed_end", item.packed_end},
          {"page_offset", item.page_offset},
          {"partial", item.partial},
          {"full", item.full != 0}};
}

Json plan_json(const Plan& plan, bool with_items) {
  const PlanHeader& h = plan.header();
  const PlanCost& c = plan.cost();
  Json json = {{"device", h.device.data()},
               {"workers", h.workers},
               {"sequences", h.sequences},
               {"q_rows", h.rows},
               {"q_heads", h.q_heads},
               {"kv_heads", h.kv_heads},
               {"head_dim", h.head_dim},
               {"dtype", dtype_name(h.dtype)},
               {"scale", h.scale},
               {"page_tokens", h.page_tokens},
               {"batch_invariant", h.batch_invariant != 0},
               {"cut_tokens", h.cut_tokens},
               {"row_tile", h.row_tile},
               {"kv_tile", h.kv_tile},
               {"items", h.items},
               {"merges", h.merges},
               {"partial_slots", h.partial_slots},
               {"partial_rows", h.partial_rows},
               {"units", h.units},
               {"schedule_bytes", h.schedule_bytes},
               {"plan_bytes", h.total_bytes},
               {"workspace_bytes", plan.workspace_bytes()},
               {"cost",
                {{"predicted_us", c.predicted_us},
                 {"predicted_unshared_us", c.predicted_unshared_us},
                 {"roof_us", c.roof_us},
                 {"kv_bytes", c.kv_bytes},
                 {"unshared_kv_bytes", c.unshared_kv_bytes},
                 {"io_bytes", c.io_bytes},
                 {"partial_bytes", c.partial_bytes},
                 {"flops", c.flops},
                 {"padded_flops", c.padded_flops},
                 {"unshared_padded_flops", c.unshared_padded_flops}}}};
  Json decisions = Json::array();
  for (const Decision& d : plan.decisions()) {
    decisions.push_back({{"segment", d.segment},
                         {"parent", d.parent},
                         {"token_begin", d.token_begin},
                         {"token_end", d.token_end},
                         {"sequences", d.sequences},
                         {"q_rows", d.q_rows},
                         {"shared", d.reason == Reason::kShared},
                         {"reason", reason_text(d.reason)},
                         {"saves_us", d.saves_us},
                         {"costs_us", d.costs_us}});
  }
  json["decisions"] = std::move(decisions);
  if (with_items) {
    Json items = Json::array();
    for (const WorkItem& item : plan.items()) items.push_back(item_json(item));
    json["work_items"] = std::move(items);
  }
  return json;
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
  const DeviceProfile profile = parse_profile(options.profile, backend, options.threads);
  const cases::Case problem = cases::read_case(options.file);
  const Forest forest = discover(problem.tables.batch());
  const Plan plan = pando::plan(forest, problem.attention(), profile, how);
  if (options.json) {
    fmt::print("{}\n", plan_json(plan, options.items).dump());
    return 0;
  }
  const term::Style style = term::Style::of(1);
  fmt::print("{}\n\n{}\n{}", style.bold(problem.name), term::forest_picture(forest, plan, style),
             explain(plan));
  if (options.items) print_items(plan);
  return 0;
}

}  // namespace pando::cli
