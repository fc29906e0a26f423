#include "plan_object.h"

#include <utility>

#include "forest/scan.h"

namespace pando::python {
namespace {

/// An update does not look at what sequences held before, and attend only compares max_page_id with
/// the pages that there are: an id beyond it would be read outside of K and V.
void check_kept_ids(const BatchView& batch, int32_t max_page_id) {
  for (int32_t b = 0; b < batch.sequences(); ++b) {
    const int32_t* ids = batch.page_ids.data() + batch.page_indptr[b];
    const int32_t pages = pages_for(batch.kv_len[b], batch.page_tokens);
    if (pages == 0) continue;
    const uint32_t top = max_unsigned(ids, pages);
    require(
        static_cast<int64_t>(top) <= max_page_id,
        "page_ids: got {} in sequence {}, which held no such page; want the pages that it held, "
        "or the sequence in changed",
        static_cast<int32_t>(top), b);
  }
}

}  // namespace

void BatchCopy::reserve(const BatchView& batch) {
  q_indptr.reserve(batch.q_indptr.size());
  kv_len.reserve(batch.kv_len.size());
  page_indptr.reserve(batch.page_indptr.size());
  page_ids.reserve(batch.page_ids.size());
}

void BatchCopy::assign(const BatchView& batch) {
  q_indptr.assign(batch.q_indptr.begin(), batch.q_indptr.end());
  kv_len.assign(batch.kv_len.begin(), batch.kv_len.end());
  page_indptr.assign(batch.page_indptr.begin(), batch.page_indptr.end());
  page_ids.assign(batch.page_ids.begin(), batch.page_ids.end());
  page_tokens = batch.page_tokens;
}

PlanObject::PlanObject(PlanRequest request)
    : request_(std::move(request)), planner_(request_.profile) {
  if (request_.cuda_device) cuda_ = std::make_unique<CudaSide>(*request_.cuda_device);
}

const Forest& PlanObject::forest() {
  if (!forest_is_of_plan_) forest_.discover(batch_.view());
  forest_is_of_plan_ = true;
  return forest_;
}

void PlanObject::make(BatchView batch, const RowMasks& masks,
                      std::optional<std::span<const int32_t>> changed) {
  AttentionSpec spec = request_.spec;
  spec.visible = masks.visible;
  spec.tree_mask = masks.tree_mask;
  if (changed) forest();
  forest_is_of_plan_ = false;
  if (changed) {
    forest_.update(batch, *changed);
  } else {
    forest_.discover(batch);
  }
  planner_.plan(forest_, spec, request_.options, next_);
  if (request_.profile.backend == Backend::kCpu) {
    const size_t lines = (next_.workspace_bytes() + sizeof(Line) - 1) / sizeof(Line);
    if (workspace_.size() < lines) workspace_.resize(lines + lines / 4);
  }
  // Engines pass buffers that are longer than their tables, and a captured graph has room for the
  // ids that plans refer to alone.
  batch.page_ids = batch.page_ids.first(next_.header().page_table_len);
  if (changed) check_kept_ids(batch, forest_.max_page_id());
  batch_.reserve(batch);
  if (cuda_) cuda_->assign(next_, batch.page_ids);
  // From here on nothing throws.
  std::swap(plan_, next_);
  batch_.assign(batch);
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
  args.page_ids = batch_.page_ids;
  args.workspace = std::as_writable_bytes(std::span(workspace_));
  cpu->run([&](CpuExecutor& executor) { attend(plan_, args, executor); });
}

}  // namespace pando::python
