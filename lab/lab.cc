#include "lab/lab.h"

#include <limits>

#include "core/check.h"

namespace pando::lab {
namespace {

constexpr int64_t kMostThreadBlocks = std::numeric_limits<int32_t>::max();  // along x
constexpr int32_t kMostThreadBlocksAlongY = 65535;

void check_pointer(const void* pointer, const char* name, bool used) {
  if (!used) return;
  require(pointer != nullptr, "{}: got a null pointer, want device memory", name);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  require(address % 16 == 0, "{}: got an address that is {} modulo 16, want a multiple of 16", name,
          address % 16);
}

}  // namespace

void check(const Batch& b) {
  if (b.head_dim != kHeadDim) {
    fail(ErrorCode::kUnsupported, "head_dim: got {}, the lab's kernels are for {}", b.head_dim,
         kHeadDim);
  }
  require(b.sequences > 0, "sequences: got {}, want at least 1", b.sequences);
  require(b.kv_heads > 0, "kv_heads: got {}, want at least 1", b.kv_heads);
  require(b.q_heads > 0 && b.q_heads % b.kv_heads == 0,
          "q_heads: got {}, want a multiple of the {} kv_heads", b.q_heads, b.kv_heads);
  require(b.prefix_tokens >= 0, "prefix_tokens: got {}, want at least 0", b.prefix_tokens);
  require(b.longest_suffix >= 0, "longest_suffix: got {}, want at least 0", b.longest_suffix);
  if (b.kv_heads > kMostThreadBlocksAlongY) {
    fail(ErrorCode::kUnsupported, "kv_heads: got {}, a grid has at most {} thread blocks along y",
         b.kv_heads, kMostThreadBlocksAlongY);
  }
  if (int64_t{b.sequences} * b.q_heads > kMostThreadBlocks) {
    fail(ErrorCode::kUnsupported, "sequences: got {} with {} q_heads, want at most {} rows",
         b.sequences, b.q_heads, kMostThreadBlocks);
  }
  check_pointer(b.q, "q", true);
  check_pointer(b.prefix_k, "prefix_k", b.prefix_tokens > 0);
  check_pointer(b.prefix_v, "prefix_v", b.prefix_tokens > 0);
  check_pointer(b.suffix_k, "suffix_k", b.longest_suffix > 0);
  check_pointer(b.suffix_v, "suffix_v", b.longest_suffix > 0);
  check_pointer(b.suffix_begin, "suffix_begin", true);
  check_pointer(b.out, "out", true);
  check_pointer(b.lse, "lse", true);
  check_pointer(b.partial_o, "partial_o", true);
  check_pointer(b.partial_lse, "partial_lse", true);
}

void refuse(const char* kernel, const char* argument, int64_t got, const char* wanted) {
  fail(ErrorCode::kUnsupported, "{}: got {}, {} wants {}", argument, got, kernel, wanted);
}

}  // namespace pando::lab
