#include "cases/case_file.h"

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>

#include "cases/files.h"
#include "cases/safetensors.h"
#include "core/check.h"

namespace pando::cases {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kMetadataKey = "pando";
constexpr int32_t kFormat = 1;

std::string_view file_dtype(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "F32";
    case DType::kBF16: return "BF16";
    case DType::kF16: return "F16";
    case DType::kE4M3: return "F8_E4M3";
  }
  return "";
}

std::string describe(const Case& problem) {
  Json json = {{"format", kFormat},
               {"name", problem.name},
               {"q_heads", problem.spec.q_heads},
               {"kv_heads", problem.spec.kv_heads},
               {"head_dim", problem.spec.head_dim},
               {"dtype", dtype_name(problem.spec.dtype)},
               {"causal", problem.spec.causal},
               {"window", problem.spec.window},
               {"page_tokens", problem.tables.page_tokens},
               {"layout", problem.order == KvOrder::kHnd ? "hnd" : "nhd"}};
  if (problem.kv_dtype() != problem.spec.dtype) json["kv_dtype"] = dtype_name(problem.kv_dtype());
  if (problem.spec.scale) json["scale"] = *problem.spec.scale;
  if (problem.spec.soft_cap != 0) json["soft_cap"] = problem.spec.soft_cap;
  return json.dump();
}

TensorView ints(std::string name, const void* data, std::vector<int64_t> shape) {
  int64_t bytes = 4;
  for (const int64_t dim : shape) bytes *= dim;
  return {std::move(name),
          "I32",
          std::move(shape),
          {static_cast<const std::byte*>(data), static_cast<size_t>(bytes)}};
}

/// Reads the fields of the metadata; each failure names the field.
class Fields {
 public:
  Fields(const Json& json, const std::string& origin) : json_(json), origin_(origin) {}

  int32_t integer(const char* name, int64_t low, int64_t high) const {
    const Json& value = at(name);
    if (!value.is_number_integer() || value.get<int64_t>() < low || value.get<int64_t>() > high) {
      refuse(name, fmt::format("an integer in [{}, {}]", low, high));
    }
    return value.get<int32_t>();
  }
  bool boolean(const char* name) const {
    if (!at(name).is_boolean()) refuse(name, "true or false");
    return at(name).get<bool>();
  }
  std::string text(const char* name) const {
    if (!at(name).is_string()) refuse(name, "a string");
    return at(name).get<std::string>();
  }
  /// A dtype of `names`, which is what was wanted in words.
  DType dtype(const char* name, const char* want, std::initializer_list<DType> choices) const {
    const std::string got = text(name);
    for (const DType choice : choices) {
      if (dtype_name(choice) == got) return choice;
    }
    refuse(name, want);
  }
  bool has(const char* name) const { return json_.contains(name); }
  std::optional<float> optional_number(const char* name) const {
    if (!json_.contains(name)) return std::nullopt;
    if (!at(name).is_number() || !std::isfinite(at(name).get<float>())) {
      refuse(name, "a finite number");
    }
    const float number = at(name).get<float>();
    if (number == 0 && at(name).get<double>() != 0) refuse(name, "0 or a number in fp32");
    return number;
  }
  [[noreturn]] void refuse(const char* name, const std::string& want) const {
    const std::string got = json_.contains(name)
                                ? json_[name].dump(-1, ' ', true, Json::error_handler_t::replace)
                                : "nothing";
    fail(ErrorCode::kIo, "{}: metadata '{}': {}: got {}, want {}", origin_, kMetadataKey, name, got,
         want);
  }

 private:
  const Json& at(const char* name) const {
    if (!json_.contains(name)) refuse(name, "a value");
    return json_[name];
  }
  const Json& json_;
  const std::string& origin_;
};

Json parse_metadata(const Safetensors& file, const std::string& origin) {
  const auto it = file.metadata.find(kMetadataKey);
  if (it == file.metadata.end()) {
    fail(ErrorCode::kIo, "{}: metadata has no '{}': not a case file", origin, kMetadataKey);
  }
  // Fields are scalars, so anything nested is refused before it can grow deep.
  const auto shallow = [&](int depth, Json::parse_event_t event, Json&) {
    if (depth > 0 &&
        (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start)) {
      fail(ErrorCode::kIo, "{}: metadata '{}': nested value", origin, kMetadataKey);
    }
    return true;
  };
  try {
    Json json = Json::parse(it->second, shallow);
    if (json.is_object()) return json;
  } catch (const Json::exception& error) {
    fail(ErrorCode::kIo, "{}: metadata '{}': {}", origin, kMetadataKey, error.what());
  }
  fail(ErrorCode::kIo, "{}: metadata '{}': want a JSON object", origin, kMetadataKey);
}

const TensorView& tensor_at(const Safetensors& file, const std::string& origin, const char* name,
                            std::string_view dtype, size_t rank) {
  const TensorView* tensor = file.find(name);
  if (tensor == nullptr) fail(ErrorCode::kIo, "{}: tensor '{}' is missing", origin, name);
  if (tensor->dtype != dtype || tensor->shape.size() != rank) {
    fail(ErrorCode::kIo, "{}: tensor '{}': got {} with {} dimensions, want {} with {}", origin,
         name, tensor->dtype, tensor->shape.size(), dtype, rank);
  }
  for (const int64_t dim : tensor->shape) {
    if (dim > std::numeric_limits<int32_t>::max()) {
      fail(ErrorCode::kIo, "{}: tensor '{}': dimension {}, want less than 2^31", origin, name, dim);
    }
  }
  return *tensor;
}

template <class T>
std::vector<T> read_list(const Safetensors& file, const std::string& origin, const char* name,
                         std::string_view dtype) {
  const TensorView& tensor = tensor_at(file, origin, name, dtype, 1);
  std::vector<T> values(tensor.shape[0]);
  if (!values.empty()) std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

std::vector<int32_t> read_ints(const Safetensors& file, const std::string& origin,
                               const char* name) {
  return read_list<int32_t>(file, origin, name, "I32");
}

/// A tensor that older files and most others do not have: `count` entries, or none.
template <class T>
std::vector<T> read_optional(const Safetensors& file, const std::string& origin, const char* name,
                             std::string_view dtype, int64_t count) {
  if (file.find(name) == nullptr) return {};
  std::vector<T> values = read_list<T>(file, origin, name, dtype);
  if (static_cast<int64_t>(values.size()) != count) {
    fail(ErrorCode::kIo, "{}: tensor '{}': got {} entries, want {}", origin, name, values.size(),
         count);
  }
  return values;
}

/// Of fp8 K or V: one, or one for each head.
std::vector<float> read_scales(const Safetensors& file, const std::string& origin, const char* name,
                               int64_t kv_heads) {
  std::vector<float> scales = read_list<float>(file, origin, name, "F32");
  if (scales.size() != 1 && static_cast<int64_t>(scales.size()) != kv_heads) {
    fail(ErrorCode::kIo, "{}: tensor '{}': got {} entries, want 1 or {}", origin, name,
         scales.size(), kv_heads);
  }
  return scales;
}

Buffer read_elements(const Safetensors& file, const std::string& origin, const char* name,
                     DType dtype, const std::vector<int64_t>& want) {
  const TensorView& tensor = tensor_at(file, origin, name, file_dtype(dtype), want.size());
  if (tensor.shape != want) {
    fail(ErrorCode::kIo, "{}: tensor '{}': got shape [{}], want [{}]", origin, name,
         fmt::join(tensor.shape, ", "), fmt::join(want, ", "));
  }
  Buffer data(tensor.data.size());
  if (!tensor.data.empty()) std::memcpy(data.data(), tensor.data.data(), tensor.data.size());
  return data;
}

std::vector<int64_t> kv_shape(const Case& problem) {
  const Tables& t = problem.tables;
  const AttentionSpec& s = problem.spec;
  if (problem.order == KvOrder::kHnd) return {t.num_pages, s.kv_heads, t.page_tokens, s.head_dim};
  return {t.num_pages, t.page_tokens, s.kv_heads, s.head_dim};
}

/// q without strides, in `storage` when it has any.
std::span<const std::byte> contiguous_q(const Case& problem, std::vector<std::byte>& storage) {
  const AttentionSpec& spec = problem.spec;
  const int64_t element = dtype_bytes(spec.dtype);
  const int64_t head_bytes = spec.head_dim * element;
  const int64_t bytes = int64_t{problem.tables.q_rows()} * spec.q_heads * head_bytes;
  if (problem.q_row_stride == 0 && problem.q_head_stride == 0) {
    return {problem.q.data(), static_cast<size_t>(bytes)};
  }
  storage.resize(bytes);
  std::byte* to = storage.data();
  for (int64_t row = 0; row < problem.tables.q_rows(); ++row) {
    for (int64_t head = 0; head < spec.q_heads; ++head, to += head_bytes) {
      std::memcpy(to, problem.q.data() + problem.q_offset(row, head) * element, head_bytes);
    }
  }
  return storage;
}

}  // namespace

void write_case(const std::string& path, const Case& problem) {
  require(problem.kv_gap == 0, "kv_gap: got {}, files hold K and V without gaps", problem.kv_gap);
  const Tables& t = problem.tables;
  const AttentionSpec& s = problem.spec;
  const std::string dtype(file_dtype(s.dtype));
  const std::string kv_dtype(file_dtype(problem.kv_dtype()));
  std::vector<std::byte> q_storage;
  const auto q = contiguous_q(problem, q_storage);
  const size_t kv_bytes = problem.kv_elements() * dtype_bytes(problem.kv_dtype());
  const auto length = [](const auto& values) { return static_cast<int64_t>(values.size()); };
  std::vector<TensorView> tensors = {
      ints("q_indptr", t.q_indptr.data(), {length(t.q_indptr)}),
      ints("kv_len", t.kv_len.data(), {length(t.kv_len)}),
      ints("page_indptr", t.page_indptr.data(), {length(t.page_indptr)}),
      ints("page_ids", t.page_ids.data(), {length(t.page_ids)}),
      {"q", dtype, {t.q_rows(), s.q_heads, s.head_dim}, q},
      {"k", kv_dtype, kv_shape(problem), problem.k.span().first(kv_bytes)},
      {"v", kv_dtype, kv_shape(problem), problem.v.span().first(kv_bytes)}};
  if (!problem.visible.empty()) {
    tensors.push_back(ints("visible", problem.visible.data(), {length(problem.visible), 2}));
  }
  const auto add = [&](const char* name, const char* type, const auto& values) {
    if (!values.empty()) {
      tensors.push_back({name, type, {length(values)}, std::as_bytes(std::span(values))});
    }
  };
  add("tree_mask", "U64", problem.tree_mask);
  add("sinks", "F32", problem.sinks);
  add("k_scale", "F32", problem.k_scale);
  add("v_scale", "F32", problem.v_scale);
  write_safetensors(path, {{kMetadataKey, describe(problem)}}, std::move(tensors));
}

Case read_case(const std::string& path) {
  const Buffer bytes = read_file(path);
  return parse_case(bytes.span(), path);
}

Case parse_case(std::span<const std::byte> bytes, const std::string& origin) {
  const Safetensors file = parse_safetensors(bytes, origin);
  const Json json = parse_metadata(file, origin);
  const Fields fields(json, origin);
  constexpr int64_t kMaxHeads = 1 << 16;
  fields.integer("format", kFormat, kFormat);

  Case problem;
  problem.name = fields.text("name");
  problem.spec.q_heads = fields.integer("q_heads", 1, kMaxHeads);
  problem.spec.kv_heads = fields.integer("kv_heads", 1, kMaxHeads);
  problem.spec.head_dim = fields.integer("head_dim", 1, kMaxHeads);
  problem.spec.causal = fields.boolean("causal");
  problem.spec.window = fields.integer("window", 0, std::numeric_limits<int32_t>::max());
  problem.spec.scale = fields.optional_number("scale");
  problem.spec.soft_cap = fields.optional_number("soft_cap").value_or(0.0f);
  if (problem.spec.soft_cap < 0) fields.refuse("soft_cap", "0 or a positive number");
  problem.spec.dtype =
      fields.dtype("dtype", "fp32, bf16 or fp16", {DType::kF32, DType::kBF16, DType::kF16});
  if (fields.has("kv_dtype")) {
    problem.spec.kv_dtype = fields.dtype("kv_dtype", "fp8", {DType::kE4M3});
  }
  const std::string layout = fields.text("layout");
  if (layout != "hnd" && layout != "nhd") fields.refuse("layout", "hnd or nhd");
  problem.order = layout == "hnd" ? KvOrder::kHnd : KvOrder::kNhd;
  if (problem.spec.q_heads % problem.spec.kv_heads != 0) {
    fields.refuse("q_heads", fmt::format("a multiple of kv_heads = {}", problem.spec.kv_heads));
  }

  Tables& tables = problem.tables;
  tables.q_indptr = read_ints(file, origin, "q_indptr");
  tables.kv_len = read_ints(file, origin, "kv_len");
  tables.page_indptr = read_ints(file, origin, "page_indptr");
  tables.page_ids = read_ints(file, origin, "page_ids");
  tables.page_tokens = fields.integer("page_tokens", 1, 256);
  const DType dtype = problem.spec.dtype;
  const DType kv_dtype = problem.kv_dtype();
  tables.num_pages = tensor_at(file, origin, "k", file_dtype(kv_dtype), 4).shape[0];
  tables.check(origin, ErrorCode::kIo);

  problem.q = read_elements(file, origin, "q", dtype,
                            {tables.q_rows(), problem.spec.q_heads, problem.spec.head_dim});
  problem.k = read_elements(file, origin, "k", kv_dtype, kv_shape(problem));
  problem.v = read_elements(file, origin, "v", kv_dtype, kv_shape(problem));
  problem.tree_mask = read_optional<uint64_t>(file, origin, "tree_mask", "U64", tables.q_rows());
  problem.sinks = read_optional<float>(file, origin, "sinks", "F32", problem.spec.q_heads);
  if (kv_dtype == DType::kE4M3) {
    problem.k_scale = read_scales(file, origin, "k_scale", problem.spec.kv_heads);
    problem.v_scale = read_scales(file, origin, "v_scale", problem.spec.kv_heads);
  }
  if (file.find("visible") != nullptr) {
    const TensorView& visible = tensor_at(file, origin, "visible", "I32", 2);
    if (visible.shape != std::vector<int64_t>{tables.q_rows(), 2}) {
      fail(ErrorCode::kIo, "{}: tensor 'visible': got shape [{}], want [{}, 2]", origin,
           fmt::join(visible.shape, ", "), tables.q_rows());
    }
    problem.visible.resize(tables.q_rows());
    if (!visible.data.empty()) {
      std::memcpy(problem.visible.data(), visible.data.data(), visible.data.size());
    }
  }
  return problem;
}

}  // namespace pando::cases
