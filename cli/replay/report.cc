#include "replay/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace pando::replay {
namespace {

using Json = nlohmann::json;

std::vector<double> collect(const std::vector<StepRecord>& steps, double StepRecord::*field) {
  std::vector<double> values;
  values.reserve(steps.size());
  for (const StepRecord& step : steps) values.push_back(step.*field);
  return values;
}

double ratio_or_zero(double numerator, double denominator) {
  return denominator > 0 ? numerator / denominator : 0;
}

std::string microseconds(const Spread& spread) {
  return fmt::format("{:>10.1f} {:>10.1f}", spread.median, spread.p99);
}

Json spread_json(const Spread& spread) { return {{"median", spread.median}, {"p99", spread.p99}}; }

std::string scale_text(const Scale& scale) {
  return scale.denominator == 1 ? fmt::format("{}", scale.numerator)
                                : fmt::format("{}/{}", scale.numerator, scale.denominator);
}

Json step_json(const StepRecord& s) {
  return {{"step", s.step},
          {"sequences", s.sequences},
          {"tokens", s.tokens},
          {"shared_segments", s.shared_segments},
          {"update_us", s.update_us},
          {"plan_us", s.plan_us},
          {"attend_us", s.attend_us},
          {"unshared_plan_us", s.unshared_plan_us},
          {"unshared_us", s.unshared_us},
          {"kv_bytes", s.kv_bytes},
          {"unshared_kv_bytes", s.unshared_kv_bytes}};
}

Json options_json(const ReplayOptions& o) {
  return {{"slots", o.slots},
          {"samples", o.samples},
          {"pool_tokens", o.pool_tokens},
          {"page_tokens", o.page_tokens},
          {"scale", scale_text(o.scale)},
          {"steps", o.steps},
          {"repeats", o.repeats},
          {"step_ms", o.step_ms},
          {"q_heads", o.q_heads},
          {"kv_heads", o.kv_heads},
          {"head_dim", o.head_dim},
          {"dtype", dtype_name(o.dtype)},
          {"seed", o.seed},
          {"check_every", o.check_every},
          {"check_rows", o.check_rows}};
}

Json counts_json(const ReplayResult& result) {
  const Counts& c = result.counts;
  return {{"requests", result.requests},      {"admitted", c.admitted},
          {"finished", c.finished},           {"refused", c.refused},
          {"preempted", c.preempted},         {"prompt_tokens", c.prompt_tokens},
          {"cached_tokens", c.cached_tokens}, {"copied_pages", c.copied_pages},
          {"evicted_pages", c.evicted_pages}};
}

Json summary_json(const Summary& s) {
  return {{"steps", s.steps},
          {"decoded_tokens", s.decoded_tokens},
          {"shared_steps", s.shared_steps},
          {"update_us", spread_json(s.update_us)},
          {"plan_us", spread_json(s.plan_us)},
          {"attend_us", spread_json(s.attend_us)},
          {"unshared_us", spread_json(s.unshared_us)},
          {"ratio", spread_json(s.ratio)},
          {"shared_ratio", spread_json(s.shared_ratio)},
          {"total_ratio", s.total_ratio},
          {"kv_bytes", s.kv_bytes},
          {"unshared_kv_bytes", s.unshared_kv_bytes}};
}

/// JSON has no infinity; a verdict that failed by a NaN has an infinite error.
Json finite(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

}  // namespace

Spread spread(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  const auto rank = [&](double share) {
    return values[static_cast<size_t>(std::ceil(share * static_cast<double>(values.size()))) - 1];
  };
  return {rank(0.5), rank(0.99)};
}

Summary summarise(const ReplayResult& result) {
  Summary summary;
  summary.steps = static_cast<int64_t>(result.steps.size());
  std::vector<double> ratios;
  std::vector<double> shared_ratios;
  double total_us = 0;
  double unshared_total_us = 0;
  for (const StepRecord& step : result.steps) {
    ratios.push_back(ratio_or_zero(step.attend_us, step.unshared_us));
    if (step.shared_segments > 0) shared_ratios.push_back(ratios.back());
    total_us += step.update_us + step.plan_us + step.attend_us;
    unshared_total_us += step.unshared_plan_us + step.unshared_us;
    summary.decoded_tokens += step.sequences;
    summary.kv_bytes += step.kv_bytes;
    summary.unshared_kv_bytes += step.unshared_kv_bytes;
  }
  summary.shared_steps = static_cast<int64_t>(shared_ratios.size());
  summary.ratio = spread(std::move(ratios));
  summary.shared_ratio = spread(std::move(shared_ratios));
  summary.total_ratio = ratio_or_zero(total_us, unshared_total_us);
  summary.update_us = spread(collect(result.steps, &StepRecord::update_us));
  summary.plan_us = spread(collect(result.steps, &StepRecord::plan_us));
  summary.attend_us = spread(collect(result.steps, &StepRecord::attend_us));
  summary.unshared_us = spread(collect(result.steps, &StepRecord::unshared_us));
  return summary;
}

std::string to_text(const ReplayResult& result) {
  const ReplayOptions& o = result.options;
  const Counts& c = result.counts;
  const Summary s = summarise(result);
  constexpr double kGB = 1e9;
  std::string text;
  const auto line = [&text]<typename... Args>(fmt::format_string<Args...> format, Args&&... args) {
    text += fmt::format(format, std::forward<Args>(args)...) + '\n';
  };
  line("{} steps, {} tokens decoded; {}/{} heads, head_dim {}, {}, pages of {}, scale {}", s.steps,
       s.decoded_tokens, o.q_heads, o.kv_heads, o.head_dim, dtype_name(o.dtype), o.page_tokens,
       scale_text(o.scale));
  line("{} ({}), {} {}", result.device, result.simd, result.threads,
       o.backend == Backend::kCpu ? "threads" : "thread blocks");
  line("");
  line("{:<24}{:>10} {:>10}", "time of a step, us", "median", "p99");
  line("{:<24}{}", "  update the forest", microseconds(s.update_us));
  line("{:<24}{}", "  plan", microseconds(s.plan_us));
  line("{:<24}{}", "  attend", microseconds(s.attend_us));
  line("{:<24}{}", "  attend, no sharing", microseconds(s.unshared_us));
  line("{:<24}{:>10.3f} {:>10.3f}", "attend / no sharing", s.ratio.median, s.ratio.p99);
  if (s.shared_steps > 0) {
    line("{:<24}{:>10.3f} {:>10.3f}   in {} steps", "  where plans share", s.shared_ratio.median,
         s.shared_ratio.p99, s.shared_steps);
  }
  line("{:<24}{:>10.3f}              update and plan included", "all time / no sharing",
       s.total_ratio);
  line("");
  line("KV read {:.3f} GB, without sharing {:.3f} GB: {:.1f} % saved", s.kv_bytes / kGB,
       s.unshared_kv_bytes / kGB,
       100 * (1 - ratio_or_zero(static_cast<double>(s.kv_bytes),
                                static_cast<double>(s.unshared_kv_bytes))));
  line("prompt tokens {}, of these in cache {} ({:.1f} %); pages evicted {}, copied on write {}",
       c.prompt_tokens, c.cached_tokens,
       100 * ratio_or_zero(static_cast<double>(c.cached_tokens),
                           static_cast<double>(c.prompt_tokens)),
       c.evicted_pages, c.copied_pages);
  line("requests in the trace {}; sequences admitted {}, finished {}, preempted {}; refused {}",
       result.requests, c.admitted, c.finished, c.preempted, c.refused);
  if (result.oracle.rows > 0) {
    line("oracle: {} over {} rows; largest error {:.3g}, allowed {:.3g}, at most {:.0f} % of it",
         result.oracle.passed ? "passed" : "FAILED", result.oracle.rows, result.oracle.max_error,
         result.oracle.allowed, 100 * result.oracle.worst_share);
  } else {
    line("oracle: not asked");
  }
  return text;
}

Json to_json(const ReplayResult& result) {
  Json steps = Json::array();
  for (const StepRecord& step : result.steps) steps.push_back(step_json(step));
  const OracleVerdict& oracle = result.oracle;
  return {{"options", options_json(result.options)},
          {"device", {{"name", result.device}, {"simd", result.simd}, {"threads", result.threads}}},
          {"summary", summary_json(summarise(result))},
          {"counts", counts_json(result)},
          {"oracle",
           {{"rows", oracle.rows},
            {"max_error", finite(oracle.max_error)},
            {"allowed", oracle.allowed},
            {"worst_share", finite(oracle.worst_share)},
            {"passed", oracle.passed}}},
          {"steps", std::move(steps)}};
}

}  // namespace pando::replay
