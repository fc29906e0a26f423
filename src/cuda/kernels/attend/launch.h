// Launching the attend kernel: tensor maps and the launch itself. bf16, head_dim 128.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/attend/work_list.h"
#include "pando/attention.h"

namespace pando::cuda {

/// One launch over `thread_blocks` blocks, all of which must be resident at once (one an SM).
/// `params` and what it points to are in device memory; `k` and `v` are strided as `kv` says.
/// Throws Error (kDevice, kUnsupported); never synchronises.
void launch_attend(const AttendParams& params, const void* k, const void* v, const KvLayout& kv,
                   int32_t thread_blocks, cudaStream_t stream);

/// Tokens of a big TMA box for pages of `page_tokens`.
int32_t box_tokens(int32_t page_tokens);

}  // namespace pando::cuda
