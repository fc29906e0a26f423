// A replay on a CUDA device: pages that changed are copied there before each step.
#include <algorithm>

#include "cases/device.h"
#include "pando/cuda.h"
#include "replay/attender.h"

namespace pando::replay {
namespace {

class CudaAttender : public Attender {
 public:
  CudaAttender(const ReplayOptions& options, KvMemory& memory)
      : memory_(memory),
        k_(memory.bytes()),
        v_(memory.bytes()),
        q_(row_bytes(options) * options.slots),
        out_(row_bytes(options) * options.slots),
        lse_(sizeof(float) * options.slots * options.q_heads) {
    k_.fill(0xff);  // as in host memory: what was never written is NaN
    v_.fill(0xff);
  }

  DeviceProfile profile() const override { return cuda_profile(); }
  int32_t workers() const override { return cuda_profile().workers; }
  std::string name() const override { return "CUDA"; }

  void begin_step(const StepInputs& inputs) override {
    const auto page_bytes = static_cast<size_t>(memory_.page_bytes());
    for (const int32_t page : memory_.take_changed_pages()) {
      const size_t at = page * page_bytes;
      k_.upload({static_cast<const std::byte*>(memory_.k()) + at, page_bytes}, at);
      v_.upload({static_cast<const std::byte*>(memory_.v()) + at, page_bytes}, at);
    }
    q_.upload(inputs.q.span(), 0);
    const auto ids = std::as_bytes(inputs.page_ids);
    if (page_ids_.size() < ids.size()) page_ids_ = cases::DeviceBuffer(2 * ids.size());
    page_ids_.upload(ids, 0);
  }

  double attend(Side& side, const StepInputs& inputs) override {
    const auto plan_bytes = static_cast<int64_t>(side.plan.schedule().size());
    if (!plan_ || plan_->capacity_bytes() < plan_bytes) {
      plan_ = std::make_unique<CudaPlan>(executor_, 2 * plan_bytes);
    }
    const auto workspace_bytes = static_cast<size_t>(side.plan.workspace_bytes());
    if (workspace_.size() < workspace_bytes) {
      workspace_ = cases::DeviceBuffer(workspace_bytes + workspace_bytes / 4);
    }
    const AttendArgs args{
        .q = {q_.data()},
        .k = k_.data(),
        .v = v_.data(),
        .kv = memory_.layout(),
        .page_ids = {reinterpret_cast<const int32_t*>(page_ids_.data()), inputs.page_ids.size()},
        .out = {out_.data()},
        .lse = reinterpret_cast<float*>(lse_.data()),
        .workspace = {workspace_.data(), workspace_.size()}};
    plan_->assign(side.plan);
    plan_->upload(stream_.get());
    const double us =
        cases::time_once(stream_, [&] { pando::attend(*plan_, args, executor_, stream_.get()); });
    out_.download(side.out.span());
    lse_.download(std::as_writable_bytes(std::span(side.lse)));
    return us;
  }

 private:
  static size_t row_bytes(const ReplayOptions& options) {
    return static_cast<size_t>(options.q_heads) * options.head_dim * dtype_bytes(options.dtype);
  }

  KvMemory& memory_;
  CudaExecutor executor_;
  cases::DeviceStream stream_;
  cases::DeviceBuffer k_, v_, q_, out_, lse_, page_ids_, workspace_;
  std::unique_ptr<CudaPlan> plan_;
};

}  // namespace

std::unique_ptr<Attender> make_cuda_attender(const ReplayOptions& options, KvMemory& memory) {
  return std::make_unique<CudaAttender>(options, memory);
}

}  // namespace pando::replay
