// Turns the bytes of a fuzzer into numbers. Reads 0 once they are used up, so that every prefix of
// an input is an input and small inputs stay small.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace pando::fuzz {

class ByteReader {
 public:
  ByteReader(const uint8_t* data, size_t size) : rest_(data, size) {}

  template <typename T>
  T take() {
    static_assert(std::is_arithmetic_v<T>);
    T value{};
    const size_t bytes = std::min(sizeof(T), rest_.size());
    if (bytes > 0) std::memcpy(&value, rest_.data(), bytes);  // data() may be null at the end
    rest_ = rest_.subspan(bytes);
    return value;
  }
  /// In [low, high]; one byte when that is enough.
  int32_t in_range(int32_t low, int32_t high) {
    const uint32_t width = static_cast<uint32_t>(high - low) + 1;
    const uint32_t value = width <= 256 ? take<uint8_t>() : take<uint32_t>();
    return low + static_cast<int32_t>(value % width);
  }
  /// True about once in `n` random bytes; never when no byte is left.
  bool one_in(int32_t n) { return in_range(0, n - 1) == n - 1; }

  template <typename T, size_t N>
  T pick(const T (&values)[N]) {
    return values[in_range(0, static_cast<int32_t>(N) - 1)];
  }

 private:
  std::span<const uint8_t> rest_;
};

}  // namespace pando::fuzz
