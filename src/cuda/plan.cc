// CudaPlan: a plan's schedule in pinned and in device memory.
#include <cstring>

#include "core/check.h"
#include "cuda/device.h"
#include "cuda/executor.h"
#include "cuda/kernels/attend/host_params.h"
#include "plan/check_args.h"

namespace pando {
namespace {

/// A graph has the constants of its spec among its launch parameters.
void check_same_spec(const PlanHeader& got, const PlanHeader& want) {
  const auto text = [](const PlanHeader& h) {
    return fmt::format(
        "heads {}/{}, {} x {}, KV of {}, scale {}, soft_cap {}, pages of {}, {} thread "
        "blocks",
        h.q_heads, h.kv_heads, h.head_dim, dtype_name(h.dtype), dtype_name(h.kv_dtype), h.scale,
        h.soft_cap, h.page_tokens, h.workers);
  };
  const bool same = got.q_heads == want.q_heads && got.kv_heads == want.kv_heads &&
                    got.head_dim == want.head_dim && got.dtype == want.dtype &&
                    got.kv_dtype == want.kv_dtype && got.scale == want.scale &&
                    got.soft_cap == want.soft_cap && got.page_tokens == want.page_tokens &&
                    got.workers == want.workers;
  if (!same) {
    fail(ErrorCode::kTypeMismatch, "plan: got one for {}; want {}, as in the captured call",
         text(got), text(want));
  }
}

void check_fits_capture(const PlanHeader& h, const cuda::PlanState::Captured& captured) {
  check_same_spec(h, captured.header);
  require(workspace_bytes(h) <= captured.workspace_bytes,
          "plan: needs a workspace of {} bytes, but the captured call was given {}",
          workspace_bytes(h), captured.workspace_bytes);
  require(h.page_table_len <= captured.page_ids,
          "plan: refers to {} page ids, but the captured call was given {}", h.page_table_len,
          captured.page_ids);
  require(h.max_page_id < captured.num_pages,
          "plan: has a page id of {}, but the captured call was given {} pages", h.max_page_id,
          captured.num_pages);
}

}  // namespace

CudaPlan::CudaPlan(const CudaExecutor& executor, int64_t capacity_bytes)
    : state_(std::make_unique<cuda::PlanState>()) {
  require(capacity_bytes >= 1, "capacity_bytes: got {}, want 1 or more", capacity_bytes);
  cuda::PlanState& s = *state_;
  s.device = executor.state_->device;
  s.multiprocessors = executor.state_->multiprocessors;
  s.placement = executor.state_->placement;
  s.capacity_bytes = (capacity_bytes + 63) / 64 * 64;
  const cuda::DeviceGuard guard(s.device);
  cuda::check(
      cudaHostAlloc(reinterpret_cast<void**>(&s.pinned), s.capacity_bytes, cudaHostAllocDefault),
      "CudaPlan: pinned memory");
  std::memset(s.pinned, 0, s.capacity_bytes);
  cuda::check(
      cudaMalloc(reinterpret_cast<void**>(&s.on_device), cuda::Control::kBytes + s.capacity_bytes),
      "CudaPlan: device memory");
  cuda::check(cudaMemset(s.on_device, 0, cuda::Control::kBytes), "CudaPlan: control block");
  cuda::check(cudaEventCreateWithFlags(&s.uploaded, cudaEventDisableTiming), "CudaPlan: event");
  // Streams that do not wait for the default stream must find the control block zeroed.
  cuda::check(cudaStreamSynchronize(cudaStreamLegacy), "CudaPlan: control block");
}

CudaPlan::~CudaPlan() = default;

// What fails in a destructor has failed before, or the process is ending: there is nobody to tell.
cuda::PlanState::~PlanState() {
  if (uploaded != nullptr) cudaEventDestroy(uploaded);
  if (on_device != nullptr) cudaFree(on_device);
  if (pinned != nullptr) cudaFreeHost(pinned);
}

int64_t CudaPlan::capacity_bytes() const { return state_->capacity_bytes; }

void CudaPlan::assign(const Plan& plan) {
  cuda::PlanState& s = *state_;
  check_plan_backend(plan, Backend::kCuda);
  const PlanHeader& h = plan.header();
  require(h.schedule_bytes <= s.capacity_bytes,
          "plan: got a schedule of {} bytes, want at most {}, the capacity of this CudaPlan",
          h.schedule_bytes, s.capacity_bytes);
  require(h.workers <= s.multiprocessors,
          "plan: got one for {} thread blocks, want at most {}, the multiprocessors of the device",
          h.workers, s.multiprocessors);
  if (s.captured) check_fits_capture(h, *s.captured);
  const cuda::DeviceGuard guard(s.device);
  cuda::check(cudaEventSynchronize(s.uploaded), "assign");
  std::memcpy(s.pinned, plan.schedule().data(), h.schedule_bytes);
  if (h.workers == s.multiprocessors) cuda::place_starts(plan, s.placement, s.pinned);
  s.header = h;
  s.upload_is_enqueued = false;
}

void CudaPlan::upload(CudaStream stream) {
  cuda::PlanState& s = *state_;
  require(s.header.has_value(), "plan: got a CudaPlan without a plan, want one that was assigned");
  auto* const on = static_cast<cudaStream_t>(stream);
  const cuda::DeviceGuard guard(s.device);
  const bool capturing = cuda::is_capturing(on);
  const int64_t bytes = capturing ? s.capacity_bytes : s.header->schedule_bytes;
  cuda::check(cudaMemcpyAsync(s.schedule(), s.pinned, bytes, cudaMemcpyHostToDevice, on), "upload");
  if (!capturing) cuda::check(cudaEventRecord(s.uploaded, on), "upload");
  s.upload_is_enqueued = true;
}

}  // namespace pando
