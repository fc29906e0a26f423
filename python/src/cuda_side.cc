#include "cuda_side.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/check.h"
#include "cuda/device.h"
#include "cuda/kernels/merge/launch.h"

namespace pando::python {
namespace {

/// Device memory, with pinned host memory of the same size where `mirrored`.
class Memory {
 public:
  explicit Memory(bool mirrored) : mirrored_(mirrored) {}
  ~Memory() { free(); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// What it held is lost when it grows. Freeing waits for the work that uses it.
  void reserve(int64_t bytes, std::string_view what) {
    if (bytes <= bytes_) return;
    free();
    const int64_t room = bytes + bytes / 2;
    cuda::check(cudaMalloc(&device_, room), what);
    if (mirrored_) {
      cuda::check(cudaHostAlloc(&host_, room, cudaHostAllocDefault), what);
      std::memset(host_, 0, room);
    }
    bytes_ = room;
  }
  int64_t bytes() const { return bytes_; }
  std::byte* device() const { return static_cast<std::byte*>(device_); }
  std::byte* host() const { return static_cast<std::byte*>(host_); }

 private:
  // What fails here has failed before, or the process is ending: there is nobody to tell.
  void free() {
    if (device_ != nullptr) cudaFree(device_);
    if (host_ != nullptr) cudaFreeHost(host_);
    device_ = host_ = nullptr;
    bytes_ = 0;
  }

  bool mirrored_;
  void* device_ = nullptr;
  void* host_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace

struct CudaSide::State {
  explicit State(int device) : executor(device) {}
  ~State() {
    if (ids_copied != nullptr) cudaEventDestroy(ids_copied);
  }

  CudaExecutor executor;
  std::unique_ptr<CudaPlan> plan;
  Memory page_ids{true};
  Memory workspace{false};
  cudaEvent_t ids_copied = nullptr;
  int64_t ids = 0;  ///< of the plan that is assigned
  bool captured = false;
  bool uploaded = false;

  bool capturing(CudaStream stream) {
    return cuda::is_capturing(static_cast<cudaStream_t>(stream));
  }
};

CudaSide::CudaSide(int device) : state_(std::make_unique<State>(device)) {
  const cuda::DeviceGuard guard(device);
  cuda::check(cudaEventCreateWithFlags(&state_->ids_copied, cudaEventDisableTiming), "plan: event");
}
CudaSide::~CudaSide() = default;

void CudaSide::assign(const Plan& plan, std::span<const int32_t> page_ids) {
  State& s = *state_;
  const cuda::DeviceGuard guard(s.executor.device());
  const int64_t schedule_bytes = std::max<int64_t>(plan.header().schedule_bytes, 1);
  const auto id_bytes = static_cast<int64_t>(page_ids.size_bytes());
  if (!s.captured) {
    if (!s.plan || s.plan->capacity_bytes() < schedule_bytes) {
      s.plan.reset();
      s.plan = std::make_unique<CudaPlan>(s.executor, 2 * schedule_bytes);
    }
    cuda::check(cudaEventSynchronize(s.ids_copied), "plan: page ids");
    s.page_ids.reserve(std::max<int64_t>(id_bytes, 4), "plan: memory for page ids");
    s.workspace.reserve(plan.workspace_bytes(), "plan: workspace");
  }
  s.plan->assign(plan);  // after a capture, refuses what exceeds the room that the graph knows
  cuda::check(cudaEventSynchronize(s.ids_copied), "plan: page ids");
  if (id_bytes > 0) std::memcpy(s.page_ids.host(), page_ids.data(), id_bytes);
  s.ids = static_cast<int64_t>(page_ids.size());
  s.uploaded = false;
}

void CudaSide::upload(CudaStream stream) {
  State& s = *state_;
  const cuda::DeviceGuard guard(s.executor.device());
  auto* const on = static_cast<cudaStream_t>(stream);
  const bool capturing = s.capturing(stream);
  const int64_t bytes = capturing ? s.page_ids.bytes() : s.ids * int64_t{sizeof(int32_t)};
  cuda::check(
      cudaMemcpyAsync(s.page_ids.device(), s.page_ids.host(), bytes, cudaMemcpyHostToDevice, on),
      "plan: page ids");
  if (!capturing) cuda::check(cudaEventRecord(s.ids_copied, on), "plan: page ids");
  s.plan->upload(stream);
  s.captured |= capturing;
  s.uploaded = true;
}

void CudaSide::attend(AttendArgs args, CudaStream stream, bool wait) {
  State& s = *state_;
  if (!s.uploaded) upload(stream);
  s.captured |= s.capturing(stream);
  args.page_ids = {reinterpret_cast<const int32_t*>(s.page_ids.device()),
                   static_cast<size_t>(s.page_ids.bytes() / sizeof(int32_t))};
  args.workspace = {s.workspace.device(), static_cast<size_t>(s.workspace.bytes())};
  pando::attend(*s.plan, args, s.executor, stream);
  if (wait) {
    const cuda::DeviceGuard guard(s.executor.device());
    cuda::check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "attend");
  }
}

void merge_rows_on_cuda(const RowParts& from, const RowsView& out, float* lse, int device,
                        CudaStream stream) {
  const cuda::DeviceGuard guard(device);
  cuda::launch_merge({.parts = from.parts,
                      .lses = from.lses,
                      .out = out.data,
                      .lse = lse,
                      .part_stride = from.part_stride,
                      .row_stride = from.row_stride,
                      .head_stride = from.head_stride,
                      .lse_part_stride = from.lse_part_stride,
                      .lse_row_stride = from.lse_row_stride,
                      .out_row_stride = out.row_stride,
                      .out_head_stride = out.head_stride,
                      .count = from.count,
                      .rows = from.rows,
                      .heads = from.heads,
                      .head_dim = from.head_dim},
                     from.dtype, static_cast<cudaStream_t>(stream));
}

}  // namespace pando::python
