#include "replay/options.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <limits>

#include "core/check.h"

namespace pando::replay {
namespace {

void in_range(const char* name, int64_t got, int64_t low, int64_t high) {
  require(got >= low && got <= high, "{}: got {}, want [{}, {}]", name, got, low, high);
}

}  // namespace

Scale Scale::parse(std::string_view text) {
  constexpr int64_t kMax = 1 << 20;
  const auto part = [&](std::string_view digits) {
    int64_t value = 0;
    const char* const end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, value);
    require(error == std::errc() && stop == end && value >= 1 && value <= kMax,
            "scale: got \"{}\", want N or N/M with both in [1, {}]", text, kMax);
    return value;
  };
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return {part(text), 1};
  return {part(text.substr(0, slash)), part(text.substr(slash + 1))};
}

void ReplayOptions::check() const {
  in_range("slots", slots, 1, 1 << 16);
  require(samples >= 1 && samples <= slots, "samples: got {}, want [1, {}]: up to slots", samples,
          slots);
  in_range("page_tokens", page_tokens, 1, 256);
  require(std::has_single_bit(static_cast<uint32_t>(page_tokens)),
          "page_tokens: got {}, want a power of two", page_tokens);
  in_range("pool_tokens", pool_tokens, 1, std::numeric_limits<int32_t>::max());
  in_range("scale", scale.numerator, 1, 1 << 20);
  in_range("scale", scale.denominator, 1, 1 << 20);
  in_range("steps", steps, 0, std::numeric_limits<int64_t>::max());
  in_range("repeats", repeats, 1, 1000);
  require(std::isfinite(step_ms) && step_ms >= 0, "step_ms: got {}, want 0 or more, and finite",
          step_ms);
  in_range("q_heads", q_heads, 1, 1 << 16);
  require(kv_heads >= 1 && kv_heads <= q_heads, "kv_heads: got {}, want [1, {}]: up to q_heads",
          kv_heads, q_heads);
  in_range("head_dim", head_dim, 1, 1 << 16);
  in_range("threads", threads, 0, 1 << 16);
  in_range("check_every", check_every, 0, std::numeric_limits<int64_t>::max());
  in_range("check_rows", check_rows, 1, 1 << 16);
}

}  // namespace pando::replay
