#include "cuda/check_tensors.h"

#include <string_view>

#include "core/check.h"
#include "cuda/device.h"
#include "plan/check_args.h"

namespace pando::cuda {
namespace {

void check_memory(std::string_view argument, const void* pointer, int device) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, pointer), argument);
  switch (attributes.type) {
    case cudaMemoryTypeManaged: return;
    case cudaMemoryTypeDevice:
      if (attributes.device == device) return;
      fail(ErrorCode::kTypeMismatch, "{}: got memory of CUDA device {}, want that of device {}",
           argument, attributes.device, device);
    default:
      fail(ErrorCode::kTypeMismatch, "{}: got memory of the host, want that of CUDA device {}",
           argument, device);
  }
}

}  // namespace

void check_tensors(const PlanHeader& h, const AttendArgs& args, int device) {
  if (h.rows == 0) return;
  check_memory("q", args.q.data, device);
  check_memory("out", args.out.data, device);
  if (args.lse != nullptr) check_memory("lse", args.lse, device);
  if (args.sinks != nullptr) check_memory("sinks", args.sinks, device);
  if (!args.k_scale.empty()) check_memory("k_scale", args.k_scale.data(), device);
  if (!args.v_scale.empty()) check_memory("v_scale", args.v_scale.data(), device);
  if (h.units > 0) {
    check_memory("k", args.k, device);
    check_memory("v", args.v, device);
    check_memory("page_ids", args.page_ids.data(), device);
  }
  if (workspace_bytes(h) > 0) check_memory("workspace", args.workspace.data(), device);
}

}  // namespace pando::cuda
