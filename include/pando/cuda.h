// The CUDA backend, for NVIDIA Hopper. A build without CUDA has the same functions: they say so.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "pando/attention.h"
#include "pando/plan.h"
#include "pando/profile.h"

namespace pando {

namespace cuda {
struct ExecutorState;
struct PlanState;
}  // namespace cuda

/// A cudaStream_t, so that no CUDA header is needed here. Null: the default stream.
using CudaStream = void*;

/// Number of CUDA devices of any kind; 0 without CUDA, a driver or a GPU. Never throws.
int cuda_device_count();
/// Why CudaExecutor(device) would throw, such as "there is no CUDA driver"; empty when it would
/// not.
std::string cuda_unavailable(int device = 0);

/// What a device says of itself.
struct CudaDeviceInfo {
  std::string name;
  int32_t compute_major = 0;
  int32_t compute_minor = 0;
  int32_t multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t free_bytes = 0;
  int32_t sm_clock_mhz = 0;      ///< highest clock of the multiprocessors
  int32_t memory_clock_mhz = 0;  ///< highest clock of the memory
  int32_t driver_version = 0;    ///< of CUDA that the driver supports: 13000 is 13.0
  int32_t runtime_version = 0;   ///< of CUDA that this library was built with
};
/// Throws kUnsupported without CUDA, driver or GPU, kInvalidArgument when there is no such device.
CudaDeviceInfo cuda_device_info(int device = 0);

/// The profile of an H100 with the name, the multiprocessors (one thread block each) and the memory
/// rate of `device`: what reads reach of the rate at its pins. Throws as CudaExecutor does.
DeviceProfile cuda_profile(int device = 0);

class CudaPlan;

/// One device, checked once. Any number of threads may use an executor.
///
/// Throws kUnsupported without CUDA, driver or GPU, and for one that is not of compute
/// capability 9.0; kInvalidArgument when there is no such device; kDevice when the driver reports a
/// fault.
class CudaExecutor {
 public:
  explicit CudaExecutor(int device = 0);
  ~CudaExecutor();
  CudaExecutor(const CudaExecutor&) = delete;
  CudaExecutor& operator=(const CudaExecutor&) = delete;

  int device() const;

 private:
  friend class CudaPlan;
  friend void attend(CudaPlan&, const AttendArgs&, CudaExecutor&, CudaStream);
  friend void attend(const Plan&, const AttendArgs&, CudaExecutor&, CudaStream);
  std::unique_ptr<cuda::ExecutorState> state_;
};

/// A plan where the kernel can read it: pinned host memory, and device memory of the same size.
///
/// In a decode loop, once a step: `assign` the new plan, `upload` it, and `attend` for every layer.
/// `upload` and `attend` allocate nothing and do not synchronise, and both can be captured in a
/// CUDA graph; after `assign` of another plan the same graph is replayed. Between launches of one
/// object there must be an order, as on one stream: work that may overlap needs an object each. Not
/// for several threads at once. It must outlive what was enqueued or captured with it, not its
/// executor.
class CudaPlan {
 public:
  /// For plans whose schedule() has up to `capacity_bytes`. Allocates, and waits for the device.
  /// Throws kInvalidArgument for a capacity below 1, kDevice when memory is short.
  CudaPlan(const CudaExecutor& executor, int64_t capacity_bytes);
  ~CudaPlan();
  CudaPlan(const CudaPlan&) = delete;
  CudaPlan& operator=(const CudaPlan&) = delete;

  int64_t capacity_bytes() const;

  /// Copies the schedule of `plan` into the pinned memory. Host work; waits only while an upload
  /// that is not part of a graph still reads that memory. When a graph reads it, the caller must
  /// know that its last replay is past the copy, as the loop does once it has the step's tokens.
  ///
  /// Throws kInvalidArgument when the plan is empty or exceeds the capacity, the device's
  /// multiprocessors, or what a captured `attend` was given (workspace, page_ids, num_pages);
  /// kTypeMismatch when it is for another backend, or for another AttentionSpec, page size or
  /// number of thread blocks than a captured `attend`. The plan assigned before then stays.
  void assign(const Plan& plan);

  /// Enqueues one copy to the device: of the schedule; while `stream` is capturing, of the whole
  /// capacity, since a later plan may need it. Throws kInvalidArgument when nothing is assigned.
  void upload(CudaStream stream);

 private:
  friend void attend(CudaPlan&, const AttendArgs&, CudaExecutor&, CudaStream);
  std::unique_ptr<cuda::PlanState> state_;
};

/// Enqueues attention of the plan that was uploaded last: one launch on `stream`, nothing else.
///
/// All pointers of `args`, page_ids and workspace included, are to memory of the executor's device;
/// q, k, v and out aligned to 16 bytes with strides that are multiples of 8 elements, of fp8 16.
/// What the workspace holds before does not matter. Everything checkable is checked first, and
/// nothing is launched then: throws kInvalidArgument, kTypeMismatch (memory of the host or of
/// another device), kUnsupported, and kDevice with the name of a CUDA error, be it one that was
/// there before. The current device may be any and stays so. In a captured call q, out and lse must
/// have room for the query rows of every plan that will be assigned, since their size is not known
/// here.
void attend(CudaPlan& plan, const AttendArgs& args, CudaExecutor& executor, CudaStream stream);

/// The same for a plan in host memory, for single calls: keeps a CudaPlan in the executor.
///
/// Costs more than a call with a CudaPlan of one's own: a copy before every launch; allocation when
/// the plan is larger than all before; an order between all such calls of one executor, on whatever
/// streams. Cannot be captured: throws kInvalidArgument when `stream` is capturing.
void attend(const Plan& plan, const AttendArgs& args, CudaExecutor& executor,
            CudaStream stream = nullptr);

}  // namespace pando
