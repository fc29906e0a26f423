// Page ids of a sequence: how many there are, and vectorised passes over them.
#pragma once

#include <cstdint>

namespace pando {

/// Pages that hold `tokens` tokens.
constexpr int32_t pages_for(int32_t tokens, int32_t page_tokens) {
  return static_cast<int32_t>((int64_t{tokens} + page_tokens - 1) / page_tokens);
}

/// Largest of `count` ids read as unsigned, so that a negative id is larger than any valid one.
/// 0 when there are none.
uint32_t max_unsigned(const int32_t* ids, int64_t count);

/// Number of leading ids that `a` and `b` have in common, at most `count`.
int64_t common_prefix(const int32_t* a, const int32_t* b, int64_t count);

}  // namespace pando
