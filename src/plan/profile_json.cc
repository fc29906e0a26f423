// Profiles as JSON. The fields and their names stand once, for reading and for writing.
#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/check.h"
#include "pando/profile.h"
#include "plan/check_profile.h"

namespace pando {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kFormat = 1;  ///< goes up when a key changes its meaning, comes or goes

/// Calls `field(key, value)` or `object(key, visitor of its fields)` for all that a profile holds.
template <class Profile, class Visitor>
void visit(Profile& p, Visitor& v) {
  v.field("workers", p.workers);
  v.field("row_tile", p.row_tile);
  v.field("kv_tile", p.kv_tile);
  v.field("launch_us", p.launch_us);
  v.field("item_us", p.item_us);
  v.field("partial_row_us", p.partial_row_us);
  v.field("dram_bytes_per_us", p.dram_bytes_per_us);
  v.field("cache_bytes_per_us", p.cache_bytes_per_us);
  v.field("cache_bytes", p.cache_bytes);
  v.object("rates", [&p](Visitor& rates) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      auto& rate = p.rates[static_cast<size_t>(dtype)];
      rates.object(dtype_name(dtype), [&rate](Visitor& r) {
        r.field("narrow_rows", rate.narrow_rows);
        r.field("row_granule", rate.row_granule);
        r.field("narrow_ns", rate.narrow_ns);
        r.field("convert_ns", rate.convert_ns);
        r.field("wide_ns", rate.wide_ns);
        r.field("softmax_ns", rate.softmax_ns);
        r.field("peak_flops_per_us", rate.peak_flops_per_us);
      });
    }
  });
  if (p.backend != Backend::kCuda) return;
  v.object("schedule", [&p](Visitor& s) {
    s.field("whole_tile_us", p.schedule.whole_tile_us);
    s.field("split_tile_us", p.schedule.split_tile_us);
    s.field("run_us", p.schedule.run_us);
    s.field("unit_us", p.schedule.unit_us);
    s.field("merge_us", p.schedule.merge_us);
    s.field("turn_us", p.schedule.turn_us);
    s.field("lookup_us", p.schedule.lookup_us);
    s.field("l2_bytes_per_us", p.schedule.l2_bytes_per_us);
  });
}

template <class Origin, class Visitor>
void visit_origin(Origin& o, Visitor& v) {
  v.field("device", o.device);
  v.field("driver", o.driver);
  v.field("clock_mhz", o.clock_mhz);
  v.field("date", o.date);
  v.field("version", o.version);
  v.field("commit", o.commit);
}

class Writer {
 public:
  explicit Writer(Json& to) : to_(to) {}
  void field(std::string_view key, const auto& value) { to_[std::string(key)] = value; }
  void object(std::string_view key, const auto& fields) {
    Json part = Json::object();
    Writer writer(part);
    fields(writer);
    to_[std::string(key)] = std::move(part);
  }

 private:
  Json& to_;
};

class Reader {
 public:
  Reader(const Json& from, std::string path) : from_(from), path_(std::move(path)) {
    require(from.is_object(), "profile{}: got {}, want an object", path_.empty() ? "" : "." + path_,
            text_of(from));
  }

  template <class Value>
  void field(std::string_view key, Value& value) {
    const Json& json = take(key);
    if constexpr (std::is_same_v<Value, std::string>) {
      require(json.is_string(), "profile.{}: got {}, want a string", name(key), text_of(json));
      value = json.template get<std::string>();
    } else if constexpr (std::is_floating_point_v<Value>) {
      require(json.is_number() && std::isfinite(json.template get<double>()),
              "profile.{}: got {}, want a finite number", name(key), text_of(json));
      value = json.template get<Value>();
      require(value >= 0, "profile.{}: got {}, want 0 or more", name(key), text_of(json));
    } else {
      constexpr auto kMost = std::numeric_limits<Value>::max();
      const bool fits =
          json.is_number_unsigned() && json.template get<uint64_t>() <= uint64_t{kMost};
      require(fits, "profile.{}: got {}, want a whole number in [0, {}]", name(key), text_of(json),
              kMost);
      value = json.template get<Value>();
    }
  }

  void object(std::string_view key, const auto& fields) {
    Reader part(take(key), name(key));
    fields(part);
    part.finish();
  }

  /// Throws for a key that was not asked for.
  void finish() const {
    for (const auto& [key, value] : from_.items()) {
      require(std::ranges::find(taken_, key) != taken_.end(),
              "profile.{}: unknown key, want only {}", name(key), fmt::join(taken_, ", "));
    }
  }

 private:
  std::string name(std::string_view key) const {
    return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  }
  const Json& take(std::string_view key) {
    const auto found = from_.find(std::string(key));
    require(found != from_.end(), "profile.{}: missing", name(key));
    taken_.emplace_back(key);
    return *found;
  }
  static std::string text_of(const Json& json) {
    constexpr size_t kMostText = 40;
    std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > kMostText) text = text.substr(0, kMostText) + "…";
    return text;
  }

  const Json& from_;
  std::string path_;
  std::vector<std::string> taken_;
};

std::string_view backend_name(Backend backend) {
  return backend == Backend::kCuda ? "cuda" : "cpu";
}

}  // namespace

std::string profile_to_json(const DeviceProfile& profile, const ProfileOrigin& origin) {
  check_profile(profile);
  require(origin.clock_mhz >= 0 && std::isfinite(origin.clock_mhz),
          "origin.clock_mhz: got {}, want 0 or more, and finite", origin.clock_mhz);
  Json json = {{"format", kFormat},
               {"name", profile.name.data()},
               {"backend", backend_name(profile.backend)}};
  Writer writer(json);
  visit(profile, writer);
  writer.object("origin", [&origin](Writer& w) { visit_origin(origin, w); });
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

DeviceProfile profile_from_json(std::string_view text, ProfileOrigin* origin) {
  const Json json = Json::parse(text, nullptr, false);
  require(!json.is_discarded(), "profile: got text that is not JSON, want an object");
  Reader reader(json, "");
  int32_t format = 0;
  reader.field("format", format);
  require(format == kFormat, "profile.format: got {}, want {}", format, kFormat);
  DeviceProfile profile;
  std::string name, backend;
  reader.field("name", name);
  require(name.size() < profile.name.size() && name.find('\0') == std::string::npos,
          "profile.name: got {} bytes, want up to {}, none of them 0", name.size(),
          profile.name.size() - 1);
  std::ranges::copy(name, profile.name.begin());
  reader.field("backend", backend);
  require(backend == "cpu" || backend == "cuda", "profile.backend: got \"{}\", want cpu or cuda",
          backend);
  profile.backend = backend == "cuda" ? Backend::kCuda : Backend::kCpu;
  visit(profile, reader);
  ProfileOrigin from;
  reader.object("origin", [&from](Reader& r) { visit_origin(from, r); });
  reader.finish();
  check_profile(profile);
  if (origin != nullptr) *origin = std::move(from);
  return profile;
}

}  // namespace pando
