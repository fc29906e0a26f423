#pragma once

namespace pando::ptx {

inline unsigned int tid_x() { return threadIdx.x; }

}  // namespace pando::ptx
