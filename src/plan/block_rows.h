// Sets of rows of a block, one bit each.
#pragma once

#include <bit>
#include <cstdint>

#include "plan/schedule_format.h"

namespace pando::cuda {

/// Rows of the block before `end`, which may lie outside of it.
inline uint64_t rows_before(int32_t end) {
  if (end <= 0) return 0;
  return end >= kBlockRows ? ~uint64_t{0} : (uint64_t{1} << end) - 1;
}
inline uint64_t rows_between(int32_t begin, int32_t end) {
  return rows_before(end) & ~rows_before(begin);
}

/// From the first to the last, as begin | end << 8.
inline uint32_t packed_range(uint64_t rows) {
  if (rows == 0) return 0;
  const auto begin = static_cast<uint32_t>(std::countr_zero(rows));
  return begin | static_cast<uint32_t>(kBlockRows - std::countl_zero(rows)) << 8;
}

/// How many there are from the first to the last.
inline int32_t span_of(uint64_t rows) {
  return rows == 0 ? 0 : kBlockRows - std::countl_zero(rows) - std::countr_zero(rows);
}

/// The longest stretch of adjacent rows, the first of equals.
inline uint64_t longest_stretch(uint64_t rows) {
  if (rows == 0) return 0;
  uint64_t last = rows;  // bit i: from row i on there are as many as were asked for so far
  int32_t length = 0;
  for (uint64_t left = rows; left != 0; left &= left >> 1) {
    last = left;
    ++length;
  }
  return rows_before(length) << std::countr_zero(last);
}

}  // namespace pando::cuda
