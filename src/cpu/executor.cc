#include <memory>
#include <string>

#include "cpu/kernels.h"
#include "cpu/matrix.h"
#include "cpu/run_plan.h"
#include "pando/cpu.h"
#include "plan/check_args.h"

namespace pando {

struct CpuExecutor::State {
  explicit State(int threads) : pool(threads) {}
  ThreadPool pool;
};

CpuExecutor::CpuExecutor(int threads) {
  check_threads(threads);
  state_ = std::make_unique<State>(threads);
}
CpuExecutor::~CpuExecutor() = default;

int CpuExecutor::threads() const { return state_->pool.threads(); }

void attend(const Plan& plan, const AttendArgs& args, CpuExecutor& executor) {
  check_args(plan, args, Backend::kCpu);
  const PlanHeader& h = plan.header();
  run_plan(plan, args, best_kernels(h.dtype, h.kv_dtype), executor.state_->pool);
}

KernelSet best_kernels(DType dtype, DType kv_dtype) {
  KernelSet kernels = vector_kernels(dtype, kv_dtype);
  if (dtype == DType::kBF16 && tiles_available()) {
    kernels.wide = attend_tiles;
    kernels.tiles = true;
  } else if (dtype == DType::kBF16 && dots_available()) {
    kernels.narrow = kv_dtype == dtype ? attend_few_dots : attend_few_dots_fp8;
    kernels.wide = attend_dots;
  }
  return kernels;
}

std::string_view cpu_simd_name() {
  const char* const matrix = tiles_available() ? "+AMX" : dots_available() ? "+BF16" : "";
  static const std::string name = std::string(vector_target_name()) + matrix;
  return name;
}

}  // namespace pando
