#include "plan/cuda_shapes.h"

#include <fmt/format.h>

namespace pando {

std::string cuda_shapes_text() {
  std::string text;
  for (const CudaShape& shape : kCudaShapes) {
    text +=
        fmt::format("{}{} x {}", text.empty() ? "" : ", ", shape.head_dim, dtype_name(shape.dtype));
  }
  return text;
}

std::string cuda_pages_text() { return fmt::format("{}", fmt::join(kCudaPageTokens, ", ")); }

}  // namespace pando
