// Stops a fuzz target where an expectation does not hold, so that the fuzzer keeps the input.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace pando::fuzz {

inline void expect(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "fuzz: expected that %s\n", what);
  std::abort();
}

}  // namespace pando::fuzz
