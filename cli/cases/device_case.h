// A case in the memory of a CUDA device, and calls of attend on it.
#pragma once

#include <cstdint>
#include <vector>

#include "cases/case.h"
#include "cases/device.h"
#include "cases/runner.h"
#include "pando/plan.h"

namespace pando::cases {

/// q, K, V and page ids of a case on the device.
class DeviceCase {
 public:
  /// Copies the case's data; a case without data gets normal numbers made on the device.
  explicit DeviceCase(const Case& problem);

  /// Everything of AttendArgs but outputs and workspace.
  AttendArgs inputs() const;
  /// The given sequences as a batch of their own in host memory, with only the pages they hold.
  Case download(const std::vector<int32_t>& sequences) const;

 private:
  const Case& problem_;
  DeviceBuffer q_, k_, v_, page_ids_, sinks_, k_scale_, v_scale_;
};

/// A plan on the device, with the memory that its results take: NaN until attend writes it.
class DeviceRun {
 public:
  DeviceRun(const Case& problem, const DeviceCase& inputs, const Plan& plan, CudaExecutor& executor,
            bool strided, bool want_lse);

  /// Enqueues the upload of the plan, and the call.
  void upload(const DeviceStream& stream) { on_device_.upload(stream.get()); }
  void attend(const DeviceStream& stream) {
    pando::attend(on_device_, args_, executor_, stream.get());
  }
  /// What attend wrote, and whether it wrote beside that.
  Output download() const;

 private:
  const Case& problem_;
  CudaExecutor& executor_;
  CudaPlan on_device_;
  OutShape shape_;
  DeviceBuffer out_, lse_, workspace_;
  size_t workspace_bytes_;
  AttendArgs args_;
};

}  // namespace pando::cases
