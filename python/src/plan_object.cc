#include "plan_object.h"

#include <utility>

namespace pando::python {

PlanObject::PlanObject(PlanRequest request)
    : request_(std::move(request)), planner_(request_.profile) {
  if (request_.cuda_device) cuda_ = std::make_unique<CudaSide>(*request_.cuda_device);
}

void PlanObject::make(const BatchView& batch, const RowMasks& masks,
                      std::optional<std::span<const int32_t>> changed) {
  AttentionSpec spec = request_.spec;
  spec.visible = masks.visible;
  spec.tree_mask = masks.tree_mask;
  if (changed && forest_is_of_plan_) {
    forest_.update(batch, *changed);
  } else {
    forest_.discover(batch);
  }
  forest_is_of_plan_ = false;
  planner_.plan(forest_, spec, request_.options, next_);
  if (request_.profile.backend == Backend::kCpu) {
    const size_t lines = (next_.workspace_bytes() + sizeof(Line) - 1) / sizeof(Line);
    if (workspace_.size() < lines) workspace_.resize(lines + lines / 4);
  }
  // Engines pass buffers that are longer than their tables, and a captured graph has room for the
  // ids that plans refer to alone.
  const auto ids = batch.page_ids.first(next_.header().page_table_len);
  page_ids_.reserve(ids.size());
  if (cuda_) cuda_->assign(next_, ids);
  // From here on nothing throws.
  std::swap(plan_, next_);
  page_ids_.assign(ids.begin(), ids.end());
  forest_is_of_plan_ = true;
}

void PlanObject::run(AttendArgs args, CpuRunnerObject* cpu, CudaStream stream, bool wait) {
  if (cuda_) {
    cuda_->attend(args, stream, wait);
    return;
  }
  if (request_.profile.backend == Backend::kCuda) {
    fail(ErrorCode::kTypeMismatch, "plan: got one for a {} to be looked at, want one for a device",
         request_.profile.name.data());
  }
  require(cpu != nullptr, "plan: there are no threads to run it");
  args.page_ids = page_ids_;
  args.workspace = std::as_writable_bytes(std::span(workspace_));
  cpu->run([&](CpuExecutor& executor) { attend(plan_, args, executor); });
}

}  // namespace pando::python
