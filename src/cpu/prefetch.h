// Software prefetch of tokens: pages lie anywhere, so the hardware cannot guess the next one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pando {

/// Hands out prefetches of the K or V of coming tokens in small portions, to be spread over the
/// computation that hides them.
class TokenPrefetch {
 public:
  TokenPrefetch(const std::byte* base, const int64_t* offsets, int32_t tokens,
                int64_t element_bytes, int32_t head_dim)
      : base_(base),
        offsets_(offsets),
        tokens_(tokens),
        element_bytes_(element_bytes),
        row_bytes_(head_dim * element_bytes) {
    open_row();
  }

  /// Cache lines of one token.
  int32_t token_lines() const { return static_cast<int32_t>((row_bytes_ + kLine - 1) / kLine); }
  /// Cache lines that are left.
  int64_t left() const { return int64_t{tokens_} * token_lines(); }

  /// The next `count` cache lines; returns how many of them there were not.
  int32_t lines(int32_t count) {
    for (; count > 0 && tokens_ > 0; --count) {
      __builtin_prefetch(at_, 0, 2);
      at_ += kLine;
      if (at_ < row_end_) continue;
      ++offsets_;
      --tokens_;
      open_row();
    }
    return count;
  }

 private:
  static constexpr int64_t kLine = 64;

  void open_row() {
    if (tokens_ == 0) return;
    at_ = base_ + *offsets_ * element_bytes_;
    row_end_ = at_ + row_bytes_;
  }

  const std::byte* base_;
  const int64_t* offsets_;
  int32_t tokens_;
  int64_t element_bytes_;
  int64_t row_bytes_;
  const std::byte* at_ = nullptr;
  const std::byte* row_end_ = nullptr;
};

/// The K and then the V of the next tile of tokens, in as many equal portions as the computation on
/// this tile has steps.
class TilePrefetch {
 public:
  TilePrefetch(TokenPrefetch keys, TokenPrefetch values, int64_t steps)
      : keys_(keys),
        values_(values),
        lines_a_step_(static_cast<int32_t>((keys.left() + values.left() + steps - 1) / steps)) {}

  void step() { values_.lines(keys_.lines(lines_a_step_)); }

 private:
  TokenPrefetch keys_, values_;
  int32_t lines_a_step_;
};

}  // namespace pando
