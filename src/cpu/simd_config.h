// Which Highway targets the kernels are compiled for; included before any Highway header.
#pragma once

#include "hwy/detect_compiler_arch.h"

#if HWY_ARCH_X86
// Every 64-bit x86 of the last fifteen years has SSE4; the scalar target is not worth its tests.
#define HWY_BASELINE_TARGETS HWY_SSE4
#endif
// Vectors must have a size known to the compiler, because kernels keep arrays of them in registers.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_SSSE3)
