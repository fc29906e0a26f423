#include "calibrate/calibrate.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/check.h"

namespace pando::calibrate {
namespace {

constexpr int kMostRuns = 1'000'000;

Json counts_json(const Counts& counts) {
  Json json = Json::object();
  for (const Constant constant : all_constants()) {
    if (count_of(counts, constant) != 0) {
      json[std::string(name_of(constant))] = count_of(counts, constant);
    }
  }
  return json;
}

const Json& part_of(const Json& json, const char* key, Json::value_t type) {
  const auto found = json.is_object() ? json.find(key) : json.end();
  const bool there = json.is_object() && found != json.end();
  require(there && found->type() == type,
          "from: got a record without {}, want one of pando calibrate", key);
  return *found;
}

double number_of(const Json& json, std::string_view what) {
  require(json.is_number() && json.get<double>() >= 0, "from: got {} as {}, want 0 or more",
          json.dump(), what);
  return json.get<double>();
}

Point point_from(const Json& json) {
  Point point;
  point.constant = constant_of_name(
      part_of(json, "constant", Json::value_t::string).get_ref<const std::string&>());
  point.text = part_of(json, "what", Json::value_t::string).get<std::string>();
  for (const auto& [name, count] : part_of(json, "counts", Json::value_t::object).items()) {
    count_of(point.counts, constant_of_name(name)) = number_of(count, name);
  }
  for (const Json& us : part_of(json, "us", Json::value_t::array)) {
    point.us.push_back(number_of(us, "a time"));
  }
  require(!point.us.empty(), "from: got \"{}\" without a time, want one or more", point.text);
  return point;
}

}  // namespace

Stopwatch device_stopwatch(cases::Runner& runner, int runs) {
  return {.plan = [&runner, runs](
                      const cases::Case& problem,
                      const Plan& plan) { return cases::time_plan(problem, plan, runs, runner); },
          .reads =
              [&runner, runs](const Probe& probe) {
                return cases::time_reads({.bytes = kReadBytes,
                                          .passes = probe.passes,
                                          .thread_blocks = probe.thread_blocks,
                                          .sharers = probe.sharers},
                                         runner.cuda().stream, runs);
              }};
}

std::vector<Point> measure(const DeviceProfile& base, std::span<const Probe> probes,
                           const Stopwatch& stopwatch,
                           const std::function<void(const Probe&)>& start) {
  std::vector<Point> points;
  for (const Probe& probe : probes) {
    start(probe);
    Point point{.constant = probe.constant, .text = probe.text(), .counts = {}, .us = {}};
    if (probe.is_plan()) {
      const cases::Case problem = case_of(probe);
      const Plan plan = plan_of(probe, problem, base);
      point.counts = counts_of(plan, base.schedule);
      point.us = stopwatch.plan(problem, plan);
    } else {
      point.counts = counts_of_reads(probe);
      point.us = stopwatch.reads(probe);
    }
    points.push_back(std::move(point));
  }
  return points;
}

Json to_json(const Measured& measured) {
  Json json = {{"base", Json::parse(profile_to_json(measured.base, measured.origin))},
               {"points", Json::array()}};
  for (const Point& point : measured.points) {
    json["points"].push_back({{"constant", name_of(point.constant)},
                              {"what", point.text},
                              {"counts", counts_json(point.counts)},
                              {"median_us", point.median_us()},
                              {"us", point.us}});
  }
  return json;
}

Measured measured_from_json(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  require(!json.is_discarded(),
          "from: got text that is not JSON, want a record of pando calibrate");
  Measured measured;
  measured.base =
      profile_from_json(part_of(json, "base", Json::value_t::object).dump(), &measured.origin);
  require(measured.base.backend == Backend::kCuda,
          "from: got a record of the backend cpu, whose profile is measured without points; want "
          "one of cuda");
  for (const Json& point : part_of(json, "points", Json::value_t::array)) {
    measured.points.push_back(point_from(point));
  }
  if (!json.contains("shapes")) return measured;
  for (const Json& shape : part_of(json, "shapes", Json::value_t::array)) {
    const std::string name = part_of(shape, "shape", Json::value_t::string).get<std::string>();
    if (!shape.contains("run_us") || !shape.contains("scale") || shape["scale"] != 1) continue;
    const Json& run = part_of(shape, "run_us", Json::value_t::object);
    const auto time = [&](const char* key) {
      require(run.contains(key), "from: got run_us of {} without {}, want one of pando calibrate",
              name, key);
      return number_of(run[key], key);
    };
    const double count = time("count");
    require(count <= kMostRuns, "from: got a count of {} as {}, want up to {}", name, count,
            kMostRuns);
    measured.shapes[name] = {time("median"), time("min"), static_cast<int>(count)};
  }
  return measured;
}

Json to_json(const Fit& fit, const DeviceProfile& base) {
  Json json = Json::array();
  for (const Fitted& fitted : fit) {
    json.push_back({{"constant", name_of(fitted.constant)},
                    {"value", fitted.value},
                    {"spread", fitted.spread},
                    {"stored", field_of(base, fitted.constant)},
                    {"measured", fitted.measured},
                    {"points", fitted.points}});
  }
  return json;
}

}  // namespace pando::calibrate
