#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "pando/plan.h"
#include "plan/schedule_format.h"

namespace pando {

std::string_view reason_text(Reason reason) {
  switch (reason) {
    case Reason::kShared: return "shared";
    case Reason::kMergeCostsMore: return "not shared: merging costs more than reading again";
    case Reason::kPlanSlower: return "not shared: the batch as a whole is faster without sharing";
    case Reason::kSharingOff: return "not shared: sharing is off";
    case Reason::kNotWholeCut:
      return "not shared: batch-invariant, and no whole cut (CUDA: tile) lies in it";
    case Reason::kOneReader: return "not shared: one sequence at most sees some of it";
    case Reason::kInvisible: return "not read: outside every row's visible range";
  }
  return "unknown";
}

namespace {

std::string bytes_text(double bytes) {
  constexpr const char* kUnits[] = {"B", "KB", "MB", "GB", "TB"};
  size_t unit = 0;
  for (; bytes >= 1000 && unit + 1 < std::size(kUnits); ++unit) bytes /= 1000;
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 2, kUnits[unit]);
}

double percent(double part, double whole) { return whole > 0 ? 100 * part / whole : 0; }

/// How the work is cut up.
std::string work_text(const Plan& plan) {
  const PlanHeader& h = plan.header();
  if (h.backend == Backend::kCpu) {
    return fmt::format("{} work items x {} kv heads, {} merge groups, {} partial rows a kv head",
                       h.items, h.kv_heads, h.merges, h.partial_slots);
  }
  cuda::ScheduleHeader schedule;
  if (h.schedule_bytes > 0) std::memcpy(&schedule, plan.schedule().data(), sizeof(schedule));
  return fmt::format("{} units for {} thread blocks, {} merges, {} partial rows; schedule of {}",
                     h.units, h.workers, schedule.merges, h.partial_rows,
                     bytes_text(static_cast<double>(h.schedule_bytes)));
}

void explain_totals(const Plan& plan, std::back_insert_iterator<std::string> out) {
  const PlanHeader& h = plan.header();
  const PlanCost& c = plan.cost();
  fmt::format_to(
      out, "plan for {} ({} workers): {} sequences, {} query rows, heads {}/{}, {} x {}{}{}\n",
      h.device.data(), h.workers, h.sequences, h.rows, h.q_heads, h.kv_heads, h.head_dim,
      dtype_name(h.dtype), h.kv_dtype == DType::kE4M3 ? " on fp8 KV" : "",
      h.batch_invariant ? ", batch-invariant" : "");
  fmt::format_to(out, "  {}\n", work_text(plan));
  if (h.soft_cap > 0) fmt::format_to(out, "  scores capped to +-{}\n", h.soft_cap);
  if (h.tree_rows > 0) {
    fmt::format_to(out, "  {} query rows see some of their sequence's draft tokens only\n",
                   h.tree_rows);
  }
  if (h.batch_invariant != 0) {
    fmt::format_to(
        out, "  batch-invariant: cuts at multiples of {} tokens; whole {} are shared\n",
        h.cut_tokens,
        h.backend == Backend::kCpu ? "cuts" : fmt::format("tiles of {} tokens", cuda::kTileTokens));
  }
  const int64_t saved = c.unshared_kv_bytes - c.kv_bytes;
  fmt::format_to(out, "  KV read       {:>10}   {} saved ({:.1f} % of {} without sharing)\n",
                 bytes_text(static_cast<double>(c.kv_bytes)),
                 bytes_text(static_cast<double>(saved)),
                 percent(static_cast<double>(saved), static_cast<double>(c.unshared_kv_bytes)),
                 bytes_text(static_cast<double>(c.unshared_kv_bytes)));
  fmt::format_to(
      out, "  FLOPs         {:>10.3f} G, {:.3f} G with padded rows ({:.3f} G without sharing)\n",
      1e-9 * static_cast<double>(c.flops), 1e-9 * static_cast<double>(c.padded_flops),
      1e-9 * static_cast<double>(c.unshared_padded_flops));
  const std::string scratch = h.scratch_bytes > 0
                                  ? fmt::format(", {} of scratch for each worker",
                                                bytes_text(static_cast<double>(h.scratch_bytes)))
                                  : "";
  fmt::format_to(out, "  workspace     {:>10}   {} of partials{}\n",
                 bytes_text(static_cast<double>(plan.workspace_bytes())),
                 bytes_text(static_cast<double>(h.partials_bytes)), scratch);
  fmt::format_to(
      out,
      "  predicted     {:>10.1f} us, {:.1f} us without sharing ({:.2f}x); roof {:.1f} us "
      "({:.0f} % of it)\n",
      c.predicted_us, c.predicted_unshared_us,
      c.predicted_us > 0 ? c.predicted_unshared_us / c.predicted_us : 1.0, c.roof_us,
      percent(c.roof_us, c.predicted_us));
}

}  // namespace

std::string explain(const Plan& plan) {
  constexpr size_t kMostLines = 40;
  std::string text;
  auto out = std::back_inserter(text);
  explain_totals(plan, out);
  const auto decisions = plan.decisions();
  if (decisions.empty()) {
    fmt::format_to(out, "  no two sequences hold a page in common\n");
    return text;
  }
  const auto shared = std::ranges::count(decisions, Reason::kShared, &Decision::reason);
  fmt::format_to(out, "  {} of {} segments that several sequences hold are shared\n", shared,
                 decisions.size());
  for (size_t i = 0; i < std::min(decisions.size(), kMostLines); ++i) {
    const Decision& d = decisions[i];
    const std::string seen =
        d.seen_by < d.sequences ? fmt::format(", seen by {}", d.seen_by) : std::string();
    fmt::format_to(out,
                   "    tokens [{}, {}) x {} sequences{}: {} (saves {:.2f} us, costs {:.2f} us)\n",
                   d.token_begin, d.token_end, d.sequences, seen, reason_text(d.reason), d.saves_us,
                   d.costs_us);
  }
  if (decisions.size() > kMostLines) {
    fmt::format_to(out, "    and {} more\n", decisions.size() - kMostLines);
  }
  return text;
}

}  // namespace pando
