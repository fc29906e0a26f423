// What the CUDA backend supports: one table, from which the planner refuses, the launch dispatches,
// tests choose and `pando info` prints.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "pando/attention.h"

namespace pando {

/// One instance of the attend kernel.
struct CudaShape {
  DType dtype;
  int32_t head_dim;
  friend bool operator==(const CudaShape&, const CudaShape&) = default;
};

inline constexpr std::array kCudaShapes = {
    CudaShape{DType::kBF16, 128}, CudaShape{DType::kBF16, 64}, CudaShape{DType::kBF16, 256},
    CudaShape{DType::kF16, 128},  CudaShape{DType::kF16, 64},  CudaShape{DType::kF16, 256}};

/// Every page size of a BatchView. Of those below 8 tokens each token is copied by itself.
inline constexpr std::array<int32_t, 9> kCudaPageTokens = {1, 2, 4, 8, 16, 32, 64, 128, 256};

constexpr bool cuda_supports(const CudaShape& shape) {
  return std::ranges::find(kCudaShapes, shape) != kCudaShapes.end();
}

constexpr bool cuda_supports_pages(int32_t page_tokens) {
  return std::ranges::find(kCudaPageTokens, page_tokens) != kCudaPageTokens.end();
}

/// Whether there are instances for fp8 KV. At 256 shared memory has no room for tiles of both
/// sorts.
constexpr bool cuda_supports_fp8(int32_t head_dim) { return head_dim <= 128; }

/// "128 x bf16, 128 x fp16".
std::string cuda_shapes_text();
/// "16, 32".
std::string cuda_pages_text();

}  // namespace pando
