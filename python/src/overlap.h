// Whether what a call writes shares memory with what it reads.
#pragma once

#include <string_view>

#include "binding.h"

namespace pando::python {

/// Throws kInvalidArgument where an element of `written` may lie in memory of `other`. Slices of
/// the same rows of one buffer do not.
void check_apart(std::string_view argument, const ffi::TensorView& written,
                 std::string_view other_name, const ffi::TensorView& other);

}  // namespace pando::python
