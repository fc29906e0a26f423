// A build without CUDA: nothing can be made.
#include "core/check.h"
#include "cuda_side.h"

namespace pando::python {

struct CudaSide::State {};

CudaSide::CudaSide(int device) {
  fail(ErrorCode::kUnsupported, "device: got CUDA device {}: {}", device, cuda_unavailable(device));
}
CudaSide::~CudaSide() = default;
void CudaSide::assign(const Plan&, std::span<const int32_t>) {}
void CudaSide::upload(CudaStream) {}
void CudaSide::attend(AttendArgs, CudaStream, bool) {}

void merge_rows_on_cuda(const RowParts&, const RowsView&, float*, int device, CudaStream) {
  fail(ErrorCode::kUnsupported, "device: got CUDA device {}: {}", device, cuda_unavailable(device));
}

}  // namespace pando::python
