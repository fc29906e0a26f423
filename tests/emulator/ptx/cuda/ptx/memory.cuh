#pragma once

#include <cstring>

#include "emulator/simt.h"

namespace pando::ptx {

/// Whoever loads with an order waits for somebody.
inline uint64_t ld_acquire(const uint64_t* from) {
  emulator::poll("ld.acquire");
  return *from;
}
inline void st_release(uint64_t* to, uint64_t value) { *to = value; }
inline void st_if(bool wanted, void* to, uint4 value) {
  if (wanted) std::memcpy(to, &value, sizeof(value));
}

}  // namespace pando::ptx
