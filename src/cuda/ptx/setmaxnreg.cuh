// setmaxnreg: moves registers between warpgroups (PTX ISA, "Miscellaneous Instructions").
#pragma once

namespace pando::ptx {

/// setmaxnreg.inc: takes registers up to Count a thread, waiting until they are free.
template <int Count>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

/// setmaxnreg.dec: gives registers beyond Count a thread back.
template <int Count>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

}  // namespace pando::ptx
