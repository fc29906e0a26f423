#include "cases/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "cases/files.h"
#include "core/check.h"

namespace pando::cases {
namespace {

using Json = nlohmann::json;

constexpr size_t kSizeBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr int kMaxDepth = 3;                       // file > tensor > shape

struct DtypeName {
  std::string_view name;
  int64_t bytes;
};
constexpr std::array<DtypeName, 15> kDtypes = {{{"F64", 8},
                                                {"I64", 8},
                                                {"U64", 8},
                                                {"F32", 4},
                                                {"I32", 4},
                                                {"U32", 4},
                                                {"BF16", 2},
                                                {"F16", 2},
                                                {"I16", 2},
                                                {"U16", 2},
                                                {"F8_E4M3", 1},
                                                {"F8_E5M2", 1},
                                                {"I8", 1},
                                                {"U8", 1},
                                                {"BOOL", 1}}};

template <typename... Args>
[[noreturn]] void io_error(fmt::format_string<Args...> text, Args&&... args) {
  fail(ErrorCode::kIo, text, std::forward<Args>(args)...);
}

/// Parses the header; duplicate names and deep nesting are refused while parsing.
Json parse_header(std::string_view text, const std::string& origin) {
  std::vector<std::set<std::string>> names;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth >= kMaxDepth && event != Json::parse_event_t::value) {
      io_error("{}: header: nested deeper than {} levels", origin, kMaxDepth);
    }
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end) names.pop_back();
    if (event == Json::parse_event_t::key &&
        !names.back().insert(parsed.get_ref<const std::string&>()).second) {
      io_error("{}: header: name '{}' occurs twice", origin, parsed.get_ref<const std::string&>());
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& error) {
    io_error("{}: header is not JSON: {}", origin, error.what());
  }
}

int64_t as_count(const Json& value, const std::string& origin, const std::string& tensor,
                 const char* what) {
  if (!value.is_number_unsigned() ||
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    io_error("{}: tensor '{}': {} holds {}, want integers in [0, 2^63)", origin, tensor, what,
             value.dump(-1, ' ', true, Json::error_handler_t::replace));
  }
  return value.get<int64_t>();
}

struct Extent {
  uint64_t begin;
  uint64_t end;
};

/// One entry of the header. `data_bytes` is what follows the header in the file.
std::pair<TensorView, Extent> parse_tensor(const std::string& name, const Json& entry,
                                           uint64_t data_bytes, const std::string& origin) {
  if (!entry.is_object()) io_error("{}: tensor '{}': want an object", origin, name);
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      io_error("{}: tensor '{}': unknown field '{}'", origin, name, key);
    }
  }
  TensorView tensor;
  tensor.name = name;
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) {
    io_error("{}: tensor '{}': dtype is missing or not a string", origin, name);
  }
  tensor.dtype = dtype->get<std::string>();
  const int64_t element = safetensors_dtype_bytes(tensor.dtype);
  if (element == 0) io_error("{}: tensor '{}': unknown dtype '{}'", origin, name, tensor.dtype);

  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array()) {
    io_error("{}: tensor '{}': shape is missing or not an array", origin, name);
  }
  int64_t bytes = element;
  for (const Json& dim : *shape) {
    tensor.shape.push_back(as_count(dim, origin, name, "shape"));
    if (__builtin_mul_overflow(bytes, tensor.shape.back(), &bytes)) {
      io_error("{}: tensor '{}': shape needs more than 2^63 bytes", origin, name);
    }
  }

  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2) {
    io_error("{}: tensor '{}': data_offsets is missing or not two integers", origin, name);
  }
  const Extent at{static_cast<uint64_t>(as_count((*offsets)[0], origin, name, "data_offsets")),
                  static_cast<uint64_t>(as_count((*offsets)[1], origin, name, "data_offsets"))};
  if (at.begin > at.end || at.end > data_bytes) {
    io_error("{}: tensor '{}': data_offsets [{}, {}] are not within the file's {} data bytes",
             origin, name, at.begin, at.end, data_bytes);
  }
  if (at.end - at.begin != static_cast<uint64_t>(bytes)) {
    io_error("{}: tensor '{}': data_offsets hold {} bytes, shape [{}] of {} wants {}", origin, name,
             at.end - at.begin, fmt::join(tensor.shape, ", "), tensor.dtype, bytes);
  }
  return {std::move(tensor), at};
}

}  // namespace

const TensorView* Safetensors::find(std::string_view name) const {
  const auto it = std::find_if(tensors.begin(), tensors.end(),
                               [&](const TensorView& tensor) { return tensor.name == name; });
  return it == tensors.end() ? nullptr : &*it;
}

int64_t safetensors_dtype_bytes(std::string_view dtype) {
  for (const DtypeName& known : kDtypes) {
    if (known.name == dtype) return known.bytes;
  }
  return 0;
}

Safetensors parse_safetensors(std::span<const std::byte> file, const std::string& origin) {
  if (file.size() < kSizeBytes) {
    io_error("{}: got {} bytes, want at least the {} of the header size", origin, file.size(),
             kSizeBytes);
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kSizeBytes; ++i) {
    header_bytes |= std::to_integer<uint64_t>(file[i]) << (8 * i);
  }
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size() - kSizeBytes) {
    io_error("{}: byte 0: header size {}, want at most {} (file size - {}) and {}", origin,
             header_bytes, file.size() - kSizeBytes, kSizeBytes, kMaxHeaderBytes);
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kSizeBytes,
                              header_bytes);
  if (!text.starts_with('{')) io_error("{}: byte 8: header does not start with '{{'", origin);
  const Json header = parse_header(text, origin);

  Safetensors result;
  const auto data = file.subspan(kSizeBytes + header_bytes);
  std::vector<std::pair<Extent, TensorView>> found;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) io_error("{}: __metadata__: want an object of strings", origin);
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) io_error("{}: __metadata__: '{}' is not a string", origin, key);
        result.metadata.emplace(key, value.get<std::string>());
      }
      continue;
    }
    auto [tensor, at] = parse_tensor(name, entry, data.size(), origin);
    tensor.data = data.subspan(at.begin, at.end - at.begin);
    found.emplace_back(at, std::move(tensor));
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.begin, a.first.end) < std::pair(b.first.begin, b.first.end);
  });
  uint64_t covered = 0;
  for (auto& [at, tensor] : found) {
    if (at.begin != covered) {
      io_error("{}: tensor '{}': begins at data byte {}, want {} ({})", origin, tensor.name,
               at.begin, covered, at.begin < covered ? "overlaps the one before" : "leaves a hole");
    }
    covered = at.end;
    result.tensors.push_back(std::move(tensor));
  }
  if (covered != data.size()) {
    io_error("{}: {} bytes follow the last tensor", origin, data.size() - covered);
  }
  return result;
}

void write_safetensors(const std::string& path, const std::map<std::string, std::string>& metadata,
                       std::vector<TensorView> tensors) {
  // Wider elements first keeps each tensor aligned without holes.
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
    return safetensors_dtype_bytes(a.dtype) > safetensors_dtype_bytes(b.dtype);
  });
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t at = 0;
  for (const TensorView& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {at, at + tensor.data.size()}}};
    at += tensor.data.size();
  }
  std::string text = tensors.empty() && metadata.empty() ? "{}" : header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data starts aligned

  AtomicFile file(path);
  std::array<std::byte, kSizeBytes> size;
  for (size_t i = 0; i < kSizeBytes; ++i) size[i] = static_cast<std::byte>(text.size() >> (8 * i));
  file.write(size);
  file.write(std::as_bytes(std::span(text)));
  for (const TensorView& tensor : tensors) file.write(tensor.data);
  file.commit();
}

}  // namespace pando::cases
