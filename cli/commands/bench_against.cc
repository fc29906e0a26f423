// pando bench --against FILE: comparison with an earlier record.
#include <fmt/format.h>

#include <string_view>

#include "cases/files.h"
#include "commands/bench_parts.h"
#include "core/check.h"
#include "term/style.h"

namespace pando::cli {
namespace {

/// Times are compared when all of these are the same; a record without one has null there.
std::string key_of(const Json& record) {
  Json key = Json::array();
  for (const char* field :
       {"shape", "nodes", "tokens", "q_heads", "kv_heads", "head_dim", "dtype", "layout",
        "page_tokens", "backend", "device", "threads", "thread_blocks", "cold"}) {
    key.push_back(record.contains(field) ? record[field] : Json());
  }
  // Older records have none: there was one distance of cuts, and K and V were as q.
  const bool batch_invariant = record.value("batch_invariant", false);
  key.push_back(record.value("cut_tokens", batch_invariant ? PlanOptions{}.cut_tokens : 0));
  for (const char* field : {"kv_dtype", "dtype"}) {
    if (!record.contains(field)) continue;
    key.push_back(record[field]);
    break;
  }
  return key.dump();
}

}  // namespace

EarlierRecords::EarlierRecords(const std::string& path) : path_(path) {
  const cases::Buffer bytes = cases::read_file(path);
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty()) continue;
    const Json record = Json::parse(line, nullptr, false);
    const Json* median = nullptr;
    if (record.is_object() && record.contains("run_us") && record["run_us"].is_object() &&
        record["run_us"].contains("median")) {
      median = &record["run_us"]["median"];
    }
    require(median != nullptr && median->is_number(),
            "against: got line {} of {}, want a record of pando bench, with run_us", number, path);
    median_us_[key_of(record)] = median->get<double>();
  }
  require(!median_us_.empty(), "against: got {}, which is empty, want records of pando bench",
          path);
}

std::optional<double> EarlierRecords::compare(Json& record) {
  const auto found = median_us_.find(key_of(record));
  if (found == median_us_.end()) return std::nullopt;
  ++compared_;
  const double before_us = found->second;
  const double now_us = record["run_us"]["median"];
  const double ratio = now_us / before_us;
  record["against_us"] = before_us;
  record["against_ratio"] = ratio;
  if (ratio > kMostSlower) slower_.push_back({record["shape"], before_us, now_us});
  return ratio;
}

int EarlierRecords::report() const {
  require(compared_ > 0,
          "against: got {}, which has none of these cases on this device, want one that has",
          path_);
  for (const Compared& c : slower_) {
    fmt::print(stderr, "{}: {} is {:.1f} % slower than {} in {}\n", c.shape,
               term::time_text(c.now_us), 100 * (c.now_us / c.before_us - 1),
               term::time_text(c.before_us), path_);
  }
  return static_cast<int>(slower_.size());
}

}  // namespace pando::cli
