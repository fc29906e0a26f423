// The one error type of the library.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace pando {

/// What kind of thing went wrong; bindings map it to their own exception types.
enum class ErrorCode {
  kInvalidArgument,  ///< a value, size, stride or pointer is wrong (Python: ValueError)
  kTypeMismatch,     ///< a dtype or device is not the one wanted (Python: TypeError)
  kUnsupported,      ///< well formed, but this build cannot do it (Python: NotImplementedError)
  kOutOfPages,       ///< the KV pool has no page left, even after eviction
  kIo,               ///< a file is missing, truncated or malformed
  kDevice,           ///< the accelerator or its driver reported a fault
};

/// Thrown by every function of the library that can fail. `message` names the argument, what it
/// got and what was wanted. Nothing has been written when it is thrown.
struct Error : std::exception {
  ErrorCode code;
  std::string message;

  Error(ErrorCode error_code, std::string text) : code(error_code), message(std::move(text)) {}
  const char* what() const noexcept override { return message.c_str(); }
};

}  // namespace pando
