// The CUDA backend of a build without CUDA: programs link, and are told.
#include "core/check.h"
#include "pando/cuda.h"

namespace pando {
namespace {

constexpr const char* kWhy = "this build has no CUDA backend";

[[noreturn]] void refuse() { fail(ErrorCode::kUnsupported, "backend: got CUDA, but {}", kWhy); }

}  // namespace

struct cuda::ExecutorState {};
struct cuda::PlanState {};

int cuda_device_count() { return 0; }
std::string cuda_unavailable(int) { return kWhy; }
CudaDeviceInfo cuda_device_info(int) { refuse(); }
DeviceProfile cuda_profile(int) { refuse(); }

CudaExecutor::CudaExecutor(int) { refuse(); }
CudaExecutor::~CudaExecutor() = default;
int CudaExecutor::device() const { refuse(); }

CudaPlan::CudaPlan(const CudaExecutor&, int64_t) { refuse(); }
CudaPlan::~CudaPlan() = default;
int64_t CudaPlan::capacity_bytes() const { refuse(); }
void CudaPlan::assign(const Plan&) { refuse(); }
void CudaPlan::upload(CudaStream) { refuse(); }

void attend(CudaPlan&, const AttendArgs&, CudaExecutor&, CudaStream) { refuse(); }
void attend(const Plan&, const AttendArgs&, CudaExecutor&, CudaStream) { refuse(); }

}  // namespace pando
