// The shapes and trees that the project is measured on; bench/shapes.json holds them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cases/case.h"
#include "cases/generate.h"

namespace pando::cases {

inline constexpr int32_t kShapeHeadDim = 128;  ///< of the tables
inline constexpr int32_t kShapePageTokens = 64;

/// A batch of one query row a sequence: levels of nodes, those of the last being the sequences.
struct Shape {
  std::string name;
  int32_t q_heads;
  int32_t kv_heads;
  std::vector<int32_t> nodes;   ///< per level
  std::vector<int32_t> tokens;  ///< per node of each level
  int32_t head_dim = kShapeHeadDim;

  int32_t batch() const { return nodes.back(); }
  int64_t unique_tokens() const;    ///< each shared token once
  int64_t sequence_tokens() const;  ///< of one sequence
  int64_t kv_bytes(DType kv_dtype) const;
  int64_t flops() const;
};

enum class ShapeList : uint8_t {
  kShapes,  ///< a prefix and suffixes
  kTrees,
  kSweep,  ///< 64 sequences that are nothing but one prefix, 4 to 128 heads, chunks of 64 tokens
  kScale,  ///< one axis at a time: sequences, prefix, depth, distinct prefixes
};
std::span<const Shape> shapes(ShapeList list);
/// A shape of any list; throws kInvalidArgument with the names of shapes and trees.
const Shape& find_shape(std::string_view name);

/// The shape with every level's tokens multiplied by `scale`, at least 1 where there were any.
Shape scaled(const Shape& shape, double scale);
/// The largest of 1, 1/2, 1/4, … at which the KV and the FLOPs without sharing stay within bounds.
double scale_to_fit(const Shape& shape, DType kv_dtype, int64_t max_kv_bytes, double max_flops);

/// Page tables, spec, strides and scales of a shape, without data.
Case shape_tables(const Shape& shape, DType dtype, KvOrder order = KvOrder::kHnd,
                  int32_t page_tokens = kShapePageTokens, uint64_t seed = 0,
                  std::optional<DType> kv_dtype = {});

}  // namespace pando::cases
