#include "replay/attender.h"

#include <chrono>

#include "pando/cpu.h"

namespace pando::replay {
namespace {

class CpuAttender : public Attender {
 public:
  CpuAttender(const ReplayOptions& options, const KvMemory& memory)
      : threads_(options.threads), memory_(memory), executor_(options.threads) {}

  DeviceProfile profile() const override { return cpu_profile(threads_); }
  int32_t workers() const override { return executor_.threads(); }
  std::string name() const override { return std::string(cpu_simd_name()); }
  void begin_step(const StepInputs&) override {}

  double attend(Side& side, const StepInputs& inputs) override {
    const auto bytes = static_cast<size_t>(side.plan.workspace_bytes());
    if (side.workspace.size() < bytes) side.workspace = cases::Buffer(bytes + bytes / 4);
    const AttendArgs args{.q = {inputs.q.data()},
                          .k = memory_.k(),
                          .v = memory_.v(),
                          .kv = memory_.layout(),
                          .page_ids = inputs.page_ids,
                          .out = {side.out.data()},
                          .lse = side.lse.data(),
                          .workspace = side.workspace.span()};
    const auto start = std::chrono::steady_clock::now();
    pando::attend(side.plan, args, executor_);
    const auto time = std::chrono::steady_clock::now() - start;
    return std::chrono::duration<double, std::micro>(time).count();
  }

 private:
  int threads_;
  const KvMemory& memory_;
  CpuExecutor executor_;
};

}  // namespace

std::unique_ptr<Attender> make_attender(const ReplayOptions& options, KvMemory& memory) {
  if (options.backend == Backend::kCuda) return make_cuda_attender(options, memory);
  return std::make_unique<CpuAttender>(options, memory);
}

}  // namespace pando::replay
