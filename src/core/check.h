// How the library refuses bad input: one line that names the argument, what it got, what it wants.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include "pando/error.h"

namespace pando {

template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(code, fmt::format(text, std::forward<Args>(args)...));
}

/// Throws kInvalidArgument unless `ok`.
template <typename... Args>
void require(bool ok, fmt::format_string<Args...> text, Args&&... args) {
  if (!ok) [[unlikely]] {
    fail(ErrorCode::kInvalidArgument, text, std::forward<Args>(args)...);
  }
}

/// `value` in fp32. Throws kInvalidArgument where that is 0, which may mean something else.
inline float in_fp32(std::string_view argument, double value) {
  const auto rounded = static_cast<float>(value);
  require(rounded != 0 || value == 0, "{}: got {}, want 0 or a number that fp32 can tell from it",
          argument, value);
  return rounded;
}

/// Throws kInvalidArgument unless all are finite and positive.
inline void require_positive(std::string_view argument, std::span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    require(values[i] > 0 && std::isfinite(values[i]),
            "{}[{}]: got {}, want a finite positive number", argument, i, values[i]);
  }
}

}  // namespace pando
