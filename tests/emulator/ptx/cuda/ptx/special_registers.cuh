#pragma once

namespace pando::ptx {

inline unsigned int tid_x() { return threadIdx.x; }
inline int opaque(int value) { return value; }

}  // namespace pando::ptx
