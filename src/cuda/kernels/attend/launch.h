// The seam between the library and the attend kernel: everything behind it may change with the
// kernel, nothing outside it looks past a ScheduleHeader.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "cuda/kernels/attend/params.h"
#include "pando/attention.h"
#include "plan/cuda_shapes.h"

namespace pando::cuda {

struct AttendLaunch;

/// Tensor maps of the K and V tensors seen last: encoding them takes microseconds, and the layers
/// of a model come again at every step. Any number of threads may use one cache.
class TensorMapCache {
 public:
  TensorMapCache();
  ~TensorMapCache();

 private:
  friend void launch_attend(const AttendLaunch&, TensorMapCache&);
  struct State;
  std::unique_ptr<State> state_;
};

/// One call of the kernel.
struct AttendLaunch {
  AttendParams params;
  CudaShape shape;
  DType kv_dtype;
  const void* k;
  const void* v;
  KvLayout kv;
  int32_t thread_blocks;  ///< as in the schedule; all must be resident at once, one an SM
  cudaStream_t stream;
};

/// Lets the kernels have the shared memory that they need on the current device; once for each
/// device, before the first launch. It clears the runtime's last error, which a launch must not.
void prepare_kernels();

/// Enqueues one launch; never synchronises and allocates no device memory. Throws Error (kDevice,
/// kUnsupported).
void launch_attend(const AttendLaunch& launch, TensorMapCache& maps);

}  // namespace pando::cuda
