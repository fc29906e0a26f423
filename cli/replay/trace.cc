#include "replay/trace.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cases/files.h"
#include "core/check.h"

namespace pando::replay {
namespace {

using Json = nlohmann::json;

/// Where an error lies.
struct Place {
  std::string_view file;
  int64_t line;
};

template <typename... Args>
[[noreturn]] void malformed(const Place& place, fmt::format_string<Args...> reason,
                            Args&&... args) {
  fail(ErrorCode::kIo, "{}:{}: {}", place.file, place.line,
       fmt::format(reason, std::forward<Args>(args)...));
}

const Json& field(const Json& object, const char* name, const Place& place) {
  const auto it = object.find(name);
  if (it == object.end()) malformed(place, "field {} is missing", name);
  return *it;
}

int64_t integer(const Json& value, std::string_view name, int64_t low, int64_t high,
                const Place& place) {
  // Only integers are printed: a string of the file may hold anything, and be of any length.
  if (!value.is_number_integer()) {
    malformed(place, "{}: got {}, want an integer in [{}, {}]", name,
              value.is_number() ? "a fraction or a number beyond 64 bits" : value.type_name(), low,
              high);
  }
  const bool beyond_int64 = value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX;
  if (beyond_int64 || value.get<int64_t>() < low || value.get<int64_t>() > high) {
    malformed(place, "{}: got {}, want an integer in [{}, {}]", name, value.dump(), low, high);
  }
  return value.get<int64_t>();
}

Request parse_request(std::string_view line, const Place& place) {
  const Json object = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) malformed(place, "not JSON");
  if (!object.is_object()) malformed(place, "got {}, want a JSON object", object.type_name());
  Request request;
  request.timestamp_ms =
      integer(field(object, "timestamp", place), "timestamp", 0, kMaxInteger, place);
  request.input_tokens = static_cast<int32_t>(
      integer(field(object, "input_length", place), "input_length", 1, kMaxTokens, place));
  request.output_tokens = static_cast<int32_t>(
      integer(field(object, "output_length", place), "output_length", 0, kMaxTokens, place));
  const Json& ids = field(object, "hash_ids", place);
  if (!ids.is_array()) malformed(place, "hash_ids: got {}, want an array", ids.type_name());
  const int32_t blocks = (request.input_tokens + kBlockTokens - 1) / kBlockTokens;
  if (ids.size() != static_cast<size_t>(blocks)) {
    malformed(place, "hash_ids: got {} ids, want {} for {} tokens in blocks of {}", ids.size(),
              blocks, request.input_tokens, kBlockTokens);
  }
  request.hash_ids.reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    request.hash_ids.push_back(
        integer(ids[i], fmt::format("hash_ids[{}]", i), 0, kMaxInteger, place));
  }
  return request;
}

}  // namespace

Trace parse_trace(std::string_view text, std::string_view file_name) {
  Trace trace;
  Place place{file_name, 0};
  while (!text.empty()) {
    const size_t length = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, length);
    text.remove_prefix(std::min(length + 1, text.size()));
    ++place.line;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    trace.push_back(parse_request(line, place));
  }
  if (trace.empty()) fail(ErrorCode::kIo, "{}: got no request, want at least one line", file_name);
  return trace;
}

Trace read_trace(const std::string& path) {
  const cases::Buffer bytes = cases::read_file(path);
  return parse_trace({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

}  // namespace pando::replay
