// The vector kernels of the CPU backend, chosen at run time for this machine.
#pragma once

#include <cstdint>

#include "cpu/unit.h"

namespace pando {

using UnitKernel = void (*)(const Unit&);
using MergeKernel = void (*)(const MergeUnit&);

/// The kernels that one attend call uses; which of the two a unit takes depends on its rows.
struct KernelSet {
  UnitKernel narrow;
  UnitKernel wide;
  MergeKernel merge;
  bool tiles;  ///< `wide` uses AMX tiles, so threads configure them first
};

UnitKernel narrow_kernel(DType dtype, DType kv_dtype);
UnitKernel wide_kernel(DType dtype, DType kv_dtype);
MergeKernel merge_kernel(DType dtype);
/// "AVX3", "AVX2", "SSE4", "NEON".
const char* vector_target_name();
/// 2^x of `count` values x <= 0, as the kernels compute it; for tests.
void exp2_values(const float* in, float* out, int64_t count);
/// tanh of `count` values, as the kernels compute it; for tests.
void tanh_values(const float* in, float* out, int64_t count);

/// fp32 of each of the 256 codes of fp8, as the kernels convert them; for tests.
void e4m3_values(float* out);

/// The best kernels for q and out of `dtype` and for K and V of `kv_dtype` on this machine.
KernelSet best_kernels(DType dtype, DType kv_dtype);
/// The vector kernels alone.
KernelSet vector_kernels(DType dtype, DType kv_dtype);

}  // namespace pando
