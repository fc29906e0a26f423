// What a refused call says.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "pando/error.h"

namespace pando::testing {

/// Message of the Error of `code` that `call` throws.
template <typename Call>
std::string message_of(ErrorCode code, Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, code) << error.message;
    return error.message;
  }
  ADD_FAILURE() << "no error";
  return "";
}

}  // namespace pando::testing
