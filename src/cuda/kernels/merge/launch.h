// The seam between the library and the merge kernel.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/kernels/merge/params.h"
#include "pando/attention.h"

namespace pando::cuda {

/// Enqueues one merge of bf16 or fp16 partials on the current device; never synchronises. Throws
/// kUnsupported for other element types, for strides and addresses that MergeParams does not allow,
/// and kDevice.
void launch_merge(const MergeParams& params, DType dtype, cudaStream_t stream);

}  // namespace pando::cuda
