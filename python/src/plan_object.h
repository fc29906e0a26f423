// A plan as Python holds it: everything that it takes to make it again and to run it.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "binding.h"
#include "cpu_runner.h"
#include "cuda_side.h"
#include "pando/forest.h"
#include "pando/plan.h"

namespace pando::python {

/// What a plan is made for; the same for all updates.
struct PlanRequest {
  AttentionSpec spec;  // without what RowMasks holds
  PlanOptions options;
  DeviceProfile profile;
  std::optional<int> cuda_device;  ///< absent: the CPU, or a device that is only planned for
};

/// What belongs to a batch: each of the two is [q_rows] or empty.
struct RowMasks {
  std::span<const VisibleRange> visible;
  std::span<const uint64_t> tree_mask;
};

/// A batch that owns its arrays.
struct BatchCopy {
  std::vector<int32_t> q_indptr{0}, kv_len, page_indptr{0}, page_ids;
  int32_t page_tokens = 1;

  BatchView view() const { return {q_indptr, kv_len, page_indptr, page_ids, page_tokens}; }
  /// Makes room, so that assign of the same batch does not throw.
  void reserve(const BatchView& batch);
  void assign(const BatchView& batch);
};

/// Forest, planner, plan, batch and workspace. One call at a time: `mutex` is for callers.
class PlanObject : public ffi::Object {
 public:
  explicit PlanObject(PlanRequest request);

  /// The plan of `batch`, which is copied. With `changed` the forest is brought up to date, else it
  /// is discovered again. When this throws, the plan before stays, and so does its forest.
  void make(BatchView batch, const RowMasks& masks,
            std::optional<std::span<const int32_t>> changed);
  /// Runs the plan on `args`, without page_ids and workspace.
  void run(AttendArgs args, CpuRunnerObject* cpu, CudaStream stream, bool wait);

  const Plan& plan() const { return plan_; }
  /// Of the plan; discovered again where an error has left another one.
  const Forest& forest();
  const PlanRequest& request() const { return request_; }
  CudaSide* cuda() const { return cuda_.get(); }

  std::mutex mutex;
  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("pando_attn.Plan", PlanObject, ffi::Object);

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };

  PlanRequest request_;
  Forest forest_;
  bool forest_is_of_plan_ = true;  ///< false after an error, until somebody asks for the forest
  Planner planner_;
  Plan plan_;
  Plan next_;        ///< is planned into, so that an error leaves plan_ alone
  BatchCopy batch_;  ///< that plan_ was made for
  std::vector<Line> workspace_;
  std::unique_ptr<CudaSide> cuda_;
};

class PlanRef : public ffi::ObjectRef {
 public:
  explicit PlanRef(ffi::ObjectPtr<PlanObject> object) : ffi::ObjectRef(std::move(object)) {}
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NOTNULLABLE(PlanRef, ffi::ObjectRef, PlanObject);
};

}  // namespace pando::python
