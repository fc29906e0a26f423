// What every file of the bindings needs: pando::Error across the boundary, and checked integers.
#pragma once

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>
#include <exception>
#include <limits>
#include <new>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "pando/error.h"

namespace pando::python {

namespace ffi = tvm::ffi;

/// The name of the Python exception for `code`.
constexpr const char* exception_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "ValueError";
    case ErrorCode::kTypeMismatch: return "TypeError";
    case ErrorCode::kUnsupported: return "NotImplementedError";
    case ErrorCode::kOutOfPages: return "pando_attn.OutOfPages";
    case ErrorCode::kIo: return "OSError";
    case ErrorCode::kDevice: break;
  }
  return "RuntimeError";
}

/// `Guarded<&f>::call` is `f` whose exceptions are those of Python: nothing else may leave the
/// library, or the interpreter would end.
template <auto F>
struct Guarded;
template <typename Result, typename... Args, Result (*F)(Args...)>
struct Guarded<F> {
  static Result call(Args... args) {
    try {
      return F(std::forward<Args>(args)...);
    } catch (const Error& error) {
      throw ffi::Error(exception_name(error.code), error.message, "");
    } catch (const std::bad_alloc&) {
      throw ffi::Error("MemoryError", "out of memory", "");
    } catch (const ffi::Error&) {
      throw;
    } catch (const std::exception& error) {
      throw ffi::Error("RuntimeError", error.what(), "");
    }
  }
};

/// `value` as an int32_t; throws kInvalidArgument when it does not fit.
inline int32_t narrow(std::string_view argument, int64_t value) {
  constexpr std::numeric_limits<int32_t> kLimits;
  require(value >= kLimits.min() && value <= kLimits.max(), "{}: got {}, want a 32-bit integer",
          argument, value);
  return static_cast<int32_t>(value);
}

}  // namespace pando::python
