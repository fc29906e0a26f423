#pragma once

namespace pando::ptx {

template <int Count>
void setmaxnreg_inc() {}
template <int Count>
void setmaxnreg_dec() {}

}  // namespace pando::ptx
