#include "cases/shapes_table.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "shapes_json.h"

namespace pando::cases {
namespace {

std::vector<Shape> list_of(const nlohmann::json& file, const char* name) {
  require(file.at("head_dim") == kShapeHeadDim, "shapes.json: got head_dim {}, want {}",
          file.at("head_dim").get<int>(), kShapeHeadDim);
  std::vector<Shape> list;
  for (const nlohmann::json& row : file.at(name)) {
    list.push_back(
        {row.at(0).get<std::string>(), row.at(1), row.at(2), row.at(3), row.at(4), kShapeHeadDim});
  }
  return list;
}

const std::vector<std::vector<Shape>>& all_lists() {
  static const std::vector<std::vector<Shape>> all = [] {
    const nlohmann::json file = nlohmann::json::parse(kShapesJson);
    return std::vector{list_of(file, "shapes"), list_of(file, "trees"), list_of(file, "sweep"),
                       list_of(file, "scale")};
  }();
  return all;
}

}  // namespace

int64_t Shape::unique_tokens() const {
  int64_t sum = 0;
  for (size_t level = 0; level < nodes.size(); ++level)
    sum += int64_t{nodes[level]} * tokens[level];
  return sum;
}

int64_t Shape::sequence_tokens() const {
  int64_t sum = 0;
  for (const int32_t count : tokens) sum += count;
  return sum;
}

int64_t Shape::kv_bytes(DType kv_dtype) const {
  return unique_tokens() * kv_heads * head_dim * 2 * dtype_bytes(kv_dtype);
}

int64_t Shape::flops() const {
  return 4 * int64_t{batch()} * q_heads * head_dim * sequence_tokens();
}

std::span<const Shape> shapes(ShapeList list) { return all_lists()[static_cast<size_t>(list)]; }

const Shape& find_shape(std::string_view name) {
  std::vector<std::string_view> names;
  for (const std::vector<Shape>& list : all_lists()) {
    for (const Shape& shape : list) {
      if (shape.name == name) return shape;
    }
  }
  for (const ShapeList list : {ShapeList::kShapes, ShapeList::kTrees}) {
    for (const Shape& shape : shapes(list)) names.push_back(shape.name);
  }
  fail(ErrorCode::kInvalidArgument, "shapes: got \"{}\", want one of {}", name,
       fmt::join(names, ", "));
}

Shape scaled(const Shape& shape, double scale) {
  Shape smaller = shape;
  for (int32_t& count : smaller.tokens) {
    if (count > 0) count = std::max(1, static_cast<int32_t>(std::lround(count * scale)));
  }
  return smaller;
}

double scale_to_fit(const Shape& shape, DType kv_dtype, int64_t max_kv_bytes, double max_flops) {
  double scale = 1;
  while (true) {
    const Shape smaller = scaled(shape, scale);
    const bool fits = smaller.kv_bytes(kv_dtype) <= max_kv_bytes &&
                      static_cast<double>(smaller.flops()) <= max_flops;
    if (fits || smaller.sequence_tokens() <= static_cast<int64_t>(shape.tokens.size()))
      return scale;
    scale /= 2;
  }
}

Case shape_tables(const Shape& shape, DType dtype, KvOrder order, int32_t page_tokens,
                  uint64_t seed, std::optional<DType> kv_dtype) {
  Rng rng(mix_seed(seed, 0));
  Case problem;
  problem.name = shape.name;
  problem.tables =
      page_tables(tree_shape(shape.nodes, shape.tokens), {.page_tokens = page_tokens}, rng);
  problem.spec.q_heads = shape.q_heads;
  problem.spec.kv_heads = shape.kv_heads;
  problem.spec.head_dim = shape.head_dim;
  problem.spec.dtype = dtype;
  problem.spec.kv_dtype = kv_dtype;
  problem.order = order;
  if (problem.kv_dtype() == DType::kE4M3) set_fp8_scales(problem);
  return problem;
}

}  // namespace pando::cases
