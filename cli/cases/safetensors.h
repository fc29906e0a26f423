// Reading and writing the safetensors format, strictly.
//
// A file is an 8-byte little-endian header size N, N bytes of JSON that map tensor names to
// {"dtype", "shape", "data_offsets": [begin, end]} (and "__metadata__" to strings), then the data.
// Offsets count from the end of the header; tensors must cover the data without holes or overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cases/buffer.h"

namespace pando::cases {

/// One tensor of a file; `data` points into the bytes that were parsed.
struct TensorView {
  std::string name;
  std::string dtype;  ///< as the format spells it: "F32", "BF16", "F16", "I32", …
  std::vector<int64_t> shape;
  std::span<const std::byte> data;  ///< not aligned
};

struct Safetensors {
  std::map<std::string, std::string> metadata;
  std::vector<TensorView> tensors;  ///< in the order of their data

  const TensorView* find(std::string_view name) const;
};

/// Bytes of one element of a safetensors dtype, 0 when there is no such dtype.
int64_t safetensors_dtype_bytes(std::string_view dtype);

/// Checks everything and never reads outside `file`. Throws kIo "origin: what is wrong, and where".
Safetensors parse_safetensors(std::span<const std::byte> file, const std::string& origin);

/// Writes the file as a whole or not at all: to a temporary file beside it, which is then renamed.
/// Throws kIo; no file is left behind.
void write_safetensors(const std::string& path, const std::map<std::string, std::string>& metadata,
                       std::vector<TensorView> tensors);

}  // namespace pando::cases
