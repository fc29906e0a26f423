// Random numbers that are the same bits on every platform.
//
// The standard fixes std::mt19937_64 but none of its distributions, and libm's log and cos differ
// in the last bit. So integers come from a 64x64 -> 128 bit product, and normals from a binomial:
// the number of ones in 64 random bits has mean 32 and variance 16; a uniform dither of one step
// makes it continuous. The result is an integer over 2^16 steps times one constant: one rounding.
// Its tails reach 8 sigma and its fourth moment is 2.97 sigma^4 (a true normal's is 3).
#pragma once

#include <bit>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace pando::cases {

/// Derives an independent seed; splitmix64's finaliser.
constexpr uint64_t mix_seed(uint64_t seed, uint64_t stream) {
  uint64_t z = seed + 0x9e3779b97f4a7c15 * (stream + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

class Rng {
 public:
  explicit Rng(uint64_t seed) : engine_(seed) {}

  uint64_t bits() { return engine_(); }

  /// Uniform in [0, bound); bound > 0.
  int64_t below(int64_t bound) {
    return static_cast<int64_t>(
        (static_cast<unsigned __int128>(bits()) * static_cast<uint64_t>(bound)) >> 64);
  }
  /// Uniform in [low, high].
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }

  template <typename T>
  const T& pick(const std::vector<T>& from) {
    return from[static_cast<size_t>(below(static_cast<int64_t>(from.size())))];
  }

  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) {
      std::swap(values[i - 1], values[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    }
  }

  /// Standard normal, see above.
  float normal() {
    if (dithers_left_ == 0) {
      dithers_ = bits();
      dithers_left_ = 4;
    }
    const int32_t dither = static_cast<int32_t>(dithers_ & 0xffff) * 2 - 0xffff;  // odd: no zero
    dithers_ >>= 16;
    --dithers_left_;
    const int32_t steps = (std::popcount(bits()) - 32) * 0x20000 + dither;
    constexpr float kStep = 1.9024009e-06f;  // 1 / (2^17 * sqrt(16 + 1/12))
    return static_cast<float>(steps) * kStep;
  }

 private:
  std::mt19937_64 engine_;
  uint64_t dithers_ = 0;
  int dithers_left_ = 0;
};

}  // namespace pando::cases
