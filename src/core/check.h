// How the library refuses bad input: one line that names the argument, what it got, what it wants.
#pragma once

#include <fmt/format.h>

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

}  // namespace pando
