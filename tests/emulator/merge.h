// The merge kernel's own source, run on the host.
#pragma once

#include "cuda/kernels/merge/params.h"
#include "pando/attention.h"

namespace pando::emulator {

/// One launch, of bf16 or fp16, on tensors in host memory.
void merge(const cuda::MergeParams& params, DType dtype);

}  // namespace pando::emulator
