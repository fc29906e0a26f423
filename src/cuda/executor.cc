// CudaExecutor and attend.
#include "cuda/executor.h"

#include <algorithm>

#include "core/check.h"
#include "cuda/check_tensors.h"
#include "cuda/device.h"
#include "cuda/kernels/attend/host_params.h"
#include "cuda/kernels/placement/launch.h"
#include "plan/check_args.h"

namespace pando {
namespace {

cuda::AttendLaunch make_launch(const cuda::PlanState& plan, const PlanHeader& h,
                               const AttendArgs& args, cudaStream_t stream) {
  // Without units nothing is loaded, but a tensor map must be valid: that of any memory will do.
  const bool reads_kv = h.units > 0;
  return {.params = cuda::make_params(h, args, plan.schedule(), plan.on_device),
          .shape = {h.dtype, h.head_dim},
          .kv_dtype = h.kv_dtype,
          .k = reads_kv ? args.k : args.out.data,
          .v = reads_kv ? args.v : args.out.data,
          .kv = reads_kv ? args.kv : KvLayout::hnd(1, h.page_tokens, 1, h.head_dim),
          .thread_blocks = h.workers,
          .stream = stream};
}

/// A graph may be replayed with any plan that fits what its call was given.
void remember_capture(cuda::PlanState& plan, const PlanHeader& h, const AttendArgs& args) {
  const cuda::PlanState::Captured now{
      .header = h,
      .workspace_bytes = static_cast<int64_t>(args.workspace.size()),
      .page_ids = static_cast<int64_t>(args.page_ids.size()),
      .num_pages = args.kv.num_pages};
  if (!plan.captured) {
    plan.captured = now;
    return;
  }
  auto& least = *plan.captured;
  least.workspace_bytes = std::min(least.workspace_bytes, now.workspace_bytes);
  least.page_ids = std::min(least.page_ids, now.page_ids);
  least.num_pages = std::min(least.num_pages, now.num_pages);
}

/// While it lives, this thread may make calls that a capture on any stream would forbid it: those
/// here enqueue nothing, and the capture of another thread is none of their business.
class RelaxedCapture {
 public:
  RelaxedCapture() { cuda::check(cudaThreadExchangeStreamCaptureMode(&mode_), "capture mode"); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

CudaExecutor::CudaExecutor(int device) : state_(std::make_unique<cuda::ExecutorState>()) {
  state_->device = device;
  state_->multiprocessors = cuda_profile(device).workers;
  const cuda::DeviceGuard guard(device);
  cuda::prepare_kernels();
  state_->placement = cuda::find_placement(state_->multiprocessors);
}

CudaExecutor::~CudaExecutor() = default;

cuda::ExecutorState::~ExecutorState() {
  if (done != nullptr) cudaEventDestroy(done);
}

int CudaExecutor::device() const { return state_->device; }

void attend(CudaPlan& cuda_plan, const AttendArgs& args, CudaExecutor& executor,
            CudaStream stream) {
  cuda::PlanState& plan = *cuda_plan.state_;
  cuda::ExecutorState& e = *executor.state_;
  if (plan.device != e.device) {
    fail(ErrorCode::kTypeMismatch, "plan: got one on CUDA device {}, want device {}", plan.device,
         e.device);
  }
  require(plan.upload_is_enqueued, "plan: got a CudaPlan that was not uploaded since assign");
  PlanHeader h = *plan.header;
  auto* const on = static_cast<cudaStream_t>(stream);
  const cuda::DeviceGuard guard(e.device);
  const RelaxedCapture relaxed;
  const bool capturing = cuda::is_capturing(on);
  if (capturing) {
    require(h.rows > 0, "plan: got one without query rows, want some in a captured call");
    h.units = std::max(h.units, 1);  // a later plan will read K and V
  }
  check_args(h, args);
  if (h.rows == 0) return;
  cuda::check_tensors(h, args, e.device);
  if (capturing) remember_capture(plan, h, args);
  cuda::launch_attend(make_launch(plan, h, args, on), e.maps);
}

void attend(const Plan& plan, const AttendArgs& args, CudaExecutor& executor, CudaStream stream) {
  check_args(plan, args, Backend::kCuda);
  if (plan.header().rows == 0) return;
  cuda::ExecutorState& e = *executor.state_;
  auto* const on = static_cast<cudaStream_t>(stream);
  const std::lock_guard lock(e.mutex);
  const cuda::DeviceGuard guard(e.device);
  require(!cuda::is_capturing(on),
          "stream: got one that is capturing, want a CudaPlan for calls in a graph");
  cuda::check_tensors(plan.header(), args, e.device);
  if (e.done == nullptr) {
    cuda::check(cudaEventCreateWithFlags(&e.done, cudaEventDisableTiming), "attend: event");
  }
  const int64_t bytes = plan.header().schedule_bytes;
  if (!e.plan || e.plan->capacity_bytes() < bytes) {
    e.plan.reset();  // waits for the calls that use it
    e.plan = std::make_unique<CudaPlan>(executor, 2 * bytes);
  }
  e.plan->assign(plan);
  cuda::check(cudaStreamWaitEvent(on, e.done), "attend: stream");  // the call before, anywhere
  e.plan->upload(stream);
  attend(*e.plan, args, executor, stream);
  cuda::check(cudaEventRecord(e.done, on), "attend: stream");
}

}  // namespace pando
