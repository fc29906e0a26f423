// The K and V tensors of a replay's pool, filled with random rows.
#pragma once

#include <cstdint>
#include <vector>

#include "cases/buffer.h"
#include "pando/attention.h"
#include "pando/prefix_tree.h"
#include "replay/options.h"

namespace pando::replay {

/// Standard normal rows by the million: windows at random places of one table of normal numbers.
class RandomRows {
 public:
  RandomRows(DType dtype, int64_t row_elements, uint64_t seed);
  /// Fills one row; the next call gives another one.
  void fill(void* row);

 private:
  static constexpr int64_t kPlaces = 1 << 18;
  int64_t element_bytes_;
  int64_t row_bytes_;
  cases::Buffer table_;
  uint64_t seed_;
  uint64_t next_ = 0;
};

/// K and V of every page, [num_pages, kv_heads, page_tokens, head_dim] each, allocated once. What
/// was never written is NaN, so that a read past a sequence's end shows in the output.
class KvMemory {
 public:
  /// Throws kInvalidArgument when the machine has less memory than that.
  explicit KvMemory(const ReplayOptions& options);

  const KvLayout& layout() const { return layout_; }
  const void* k() const { return k_.data(); }
  const void* v() const { return v_.data(); }
  int64_t bytes() const { return static_cast<int64_t>(k_.size()); }  ///< of K, and of V
  int64_t page_bytes() const { return layout_.page_stride * element_bytes_; }

  /// Random K and V for one token at every head.
  void fill(int32_t page, int32_t slot);
  void copy(const PageCopy& copy);
  /// Pages written since the last call, each once.
  std::vector<int32_t> take_changed_pages();

 private:
  void mark(int32_t page);

  KvLayout layout_;
  int64_t element_bytes_;
  cases::Buffer k_;
  cases::Buffer v_;
  RandomRows rows_;
  std::vector<int32_t> changed_pages_;
  std::vector<uint8_t> is_changed_;  ///< by page
};

}  // namespace pando::replay
