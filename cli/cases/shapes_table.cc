#include "cases/shapes_table.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/check.h"

namespace pando::cases {
namespace {

/// `batch` sequences of `suffix` own tokens on a prefix; a part of 0 tokens is left out.
Shape prefix_suffix(std::string name, int32_t batch, int32_t q_heads, int32_t kv_heads,
                    int32_t prefix, int32_t suffix) {
  return {std::move(name), q_heads, kv_heads, {1, batch}, {prefix, suffix}, false};
}

std::vector<Shape> make_shapes() {
  return {
      prefix_suffix("mha32-a", 32, 32, 32, 1024, 128),
      prefix_suffix("mha32-b", 32, 32, 32, 4096, 128),
      prefix_suffix("mha64", 64, 32, 32, 8192, 256),
      prefix_suffix("l3-1", 1, 32, 8, 0, 8192),
      prefix_suffix("l3-8", 8, 32, 8, 1024, 128),
      prefix_suffix("l3-32", 32, 32, 8, 2048, 256),
      prefix_suffix("l3-64", 64, 32, 8, 4096, 256),
      prefix_suffix("l3-128", 128, 32, 8, 8192, 512),
      prefix_suffix("l3-256", 256, 32, 8, 8192, 128),
      prefix_suffix("l3-64-32k", 64, 32, 8, 32768, 128),
      prefix_suffix("l3-256-32k", 256, 32, 8, 32768, 128),
      prefix_suffix("l3-1024", 1024, 32, 8, 2048, 64),
      prefix_suffix("tp8", 8, 8, 1, 4000, 128),
      prefix_suffix("tp8-64", 64, 8, 1, 16384, 256),
      prefix_suffix("small-128", 128, 32, 8, 128, 3),
      prefix_suffix("small-512", 128, 32, 8, 512, 3),
      prefix_suffix("seed-4x4", 64, 4, 4, 256, 0),
      prefix_suffix("seed-32x16", 64, 32, 32, 1024, 0),
      prefix_suffix("seed-64x64", 64, 64, 64, 4096, 0),
      prefix_suffix("seed-128x128", 64, 128, 128, 8192, 0),
      prefix_suffix("noshare-16", 16, 32, 8, 0, 8192),
      prefix_suffix("noshare-64", 64, 32, 8, 0, 2048),
      prefix_suffix("noshare-256", 256, 32, 8, 0, 1024),
      {"tree-8x8", 32, 8, {1, 8, 64}, {2048, 512, 128}, true},
      {"fasttree-a", 32, 8, {1, 4, 16, 512}, {1024, 256, 128, 32}, true},
      {"fasttree-b", 32, 8, {1, 4, 16, 64, 256, 1024}, {256, 8, 256, 64, 32, 256}, true},
      {"fasttree-c", 32, 32, {1, 10}, {4000, 400}, true},
      {"pat-a", 32, 8, {8, 16, 32, 256}, {512, 512, 256, 32}, true},
  };
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

int64_t Shape::kv_bytes(DType dtype) const {
  return unique_tokens() * kv_heads * kShapeHeadDim * 2 * dtype_bytes(dtype);
}

int64_t Shape::flops() const {
  return 4 * int64_t{batch()} * q_heads * kShapeHeadDim * sequence_tokens();
}

std::span<const Shape> shapes() {
  static const std::vector<Shape> all = make_shapes();
  return all;
}

std::span<const Shape> seed_sweep() {
  static const std::vector<Shape> all = [] {
    constexpr std::pair<int32_t, int32_t> kHeadsAndChunks[] = {
        {4, 4},   {4, 8},   {4, 16},  {4, 32},  {4, 64},   {16, 16},  {32, 8},   {8, 64},
        {32, 16}, {16, 64}, {64, 16}, {64, 64}, {128, 64}, {64, 128}, {128, 128}};
    std::vector<Shape> made;
    for (const auto& [heads, chunks] : kHeadsAndChunks) {
      made.push_back(prefix_suffix(fmt::format("sweep-{}x{}", heads, chunks), 64, heads, heads,
                                   64 * chunks, 0));
    }
    return made;
  }();
  return all;
}

const Shape& find_shape(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Shape& shape : shapes()) {
    if (shape.name == name) return shape;
    names.push_back(shape.name);
  }
  for (const Shape& shape : seed_sweep()) {
    if (shape.name == name) return shape;
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

double scale_to_fit(const Shape& shape, DType dtype, int64_t max_kv_bytes, double max_flops) {
  double scale = 1;
  while (true) {
    const Shape smaller = scaled(shape, scale);
    const bool fits = smaller.kv_bytes(dtype) <= max_kv_bytes &&
                      static_cast<double>(smaller.flops()) <= max_flops;
    if (fits || smaller.sequence_tokens() <= static_cast<int64_t>(shape.tokens.size()))
      return scale;
    scale /= 2;
  }
}

Case shape_tables(const Shape& shape, DType dtype, KvOrder order, int32_t page_tokens,
                  uint64_t seed) {
  Rng rng(mix_seed(seed, 0));
  Case problem;
  problem.name = shape.name;
  problem.tables =
      page_tables(tree_shape(shape.nodes, shape.tokens), {.page_tokens = page_tokens}, rng);
  problem.spec.q_heads = shape.q_heads;
  problem.spec.kv_heads = shape.kv_heads;
  problem.spec.head_dim = kShapeHeadDim;
  problem.spec.dtype = dtype;
  problem.order = order;
  return problem;
}

}  // namespace pando::cases
