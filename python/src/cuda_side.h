// What the package does on a CUDA device. A build without CUDA has the same, which says so.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "merge_rows.h"
#include "pando/cuda.h"

namespace pando::python {

/// The schedule, the page ids and the workspace of one plan in device memory. Not for several
/// threads at once.
class CudaSide {
 public:
  /// Throws as CudaExecutor does.
  explicit CudaSide(int device);
  ~CudaSide();
  CudaSide(const CudaSide&) = delete;
  CudaSide& operator=(const CudaSide&) = delete;

  /// Takes over a plan and its page ids; room grows as needed, until a call was captured: then a
  /// plan that needs more throws kInvalidArgument, and the one before stays.
  void assign(const Plan& plan, std::span<const int32_t> page_ids);
  /// Enqueues the copies to the device; attend does so by itself outside of a capture.
  void upload(CudaStream stream);
  /// `args` without page_ids and workspace. With `wait`, returns when the result is complete.
  void attend(AttendArgs args, CudaStream stream, bool wait);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// merge_rows of memory of a device; enqueued. Throws as cuda::launch_merge does.
void merge_rows_on_cuda(const RowParts& from, const RowsView& out, float* lse, int device,
                        CudaStream stream);

}  // namespace pando::python
