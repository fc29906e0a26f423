// pando_attn.attend and pando_attn.upload: running plans on tensors of the caller.
#include <tvm/ffi/extra/c_env_api.h>

#include "merge_rows.h"
#include "overlap.h"
#include "plan_object.h"
#include "registration.h"
#include "tensors.h"

namespace pando::python {
namespace {

constexpr int64_t kFrameworksStream = -1;

CudaStream stream_of(std::optional<int> cuda_device, int64_t stream) {
  if (!cuda_device) return nullptr;
  if (stream == kFrameworksStream) return TVMFFIEnvGetStream(kDLCUDA, *cuda_device);
  return reinterpret_cast<CudaStream>(stream);
}

/// Computes `plan` on tensors; lse, sinks and the scales of fp8 KV are optional. `bits`: bf16 comes
/// as uint16. `stream`: a cudaStream_t, or -1 for the current one of the framework whose tensors
/// these are.
void attend_tensors(PlanRef plan, ffi::Optional<CpuRunner> cpu, ffi::TensorView q,
                    ffi::TensorView k, ffi::TensorView v, ffi::TensorView out,
                    ffi::Optional<ffi::TensorView> lse, ffi::Optional<ffi::TensorView> sinks,
                    ffi::Optional<ffi::TensorView> k_scale, ffi::Optional<ffi::TensorView> v_scale,
                    int64_t order, ffi::String k_name, ffi::String v_name, bool bits,
                    int64_t stream, bool wait) {
  const std::lock_guard lock(plan->mutex);
  const PlanHeader& h = plan->plan().header();
  const PlanRequest& request = plan->request();
  const TensorRules rules{h.dtype, h.backend, request.cuda_device.value_or(0), bits, true};
  const RowsView queries = rows_view("q", q, h.rows, h.q_heads, h.head_dim, rules);
  const KvView kv = kv_view(k, v, static_cast<KvOrder>(order), {k_name, v_name}, h, rules);
  AttendArgs args{.q = {queries.data, queries.row_stride, queries.head_stride},
                  .k = kv.k,
                  .v = kv.v,
                  .kv = kv.layout,
                  .page_ids = {},
                  .out = rows_view("out", out, h.rows, h.q_heads, h.head_dim, rules),
                  .workspace = {}};
  if (lse.has_value()) args.lse = lse_view("lse", *lse, h.rows, h.q_heads, rules);
  if (sinks.has_value()) args.sinks = sinks_view("sinks", *sinks, h.q_heads, rules);
  if (k_scale.has_value()) args.k_scale = scales_view("k_scale", *k_scale, rules);
  if (v_scale.has_value()) args.v_scale = scales_view("v_scale", *v_scale, rules);
  const auto check_written = [&](std::string_view name, const ffi::TensorView& written) {
    check_apart(name, written, "q", q);
    check_apart(name, written, {k_name.data(), k_name.size()}, k);
    check_apart(name, written, {v_name.data(), v_name.size()}, v);
    if (sinks.has_value()) check_apart(name, written, "sinks", *sinks);
    if (k_scale.has_value()) check_apart(name, written, "k_scale", *k_scale);
    if (v_scale.has_value()) check_apart(name, written, "v_scale", *v_scale);
  };
  check_written("out", out);
  if (lse.has_value()) {
    check_written("lse", *lse);
    check_apart("lse", *lse, "out", out);
  }
  plan->run(args, cpu.has_value() ? cpu.value().get() : nullptr,
            stream_of(request.cuda_device, stream), wait);
}

/// Merges parts [n, rows, heads, head_dim] with their LSEs [n, rows, heads], all contiguous in the
/// last dimension, into out [rows, heads, head_dim] and, when given, lse [rows, heads]. All are on
/// `cuda_device`, or on the host when that is -1; `stream` as for attend.
void merge_parts(ffi::TensorView parts, ffi::TensorView part_lses, ffi::TensorView out,
                 ffi::Optional<ffi::TensorView> lse, int64_t dtype, bool bits, int64_t cuda_device,
                 int64_t stream) {
  const bool on_host = cuda_device < 0;
  const int32_t device = on_host ? 0 : narrow("device", cuda_device);
  const Backend backend = on_host ? Backend::kCpu : Backend::kCuda;
  const TensorRules rules{static_cast<DType>(narrow("dtype", dtype)), backend, device, bits};
  check_tensor("parts", parts, rules);
  check_tensor("part_lses", part_lses, {DType::kF32, backend, device});
  require(parts.ndim() == 4 && last_is_contiguous(parts),
          "parts: got shape {}, want [n, rows, heads, head_dim] with contiguous head_dim",
          shape_text(parts));
  require(part_lses.ndim() == 3 && last_is_contiguous(part_lses),
          "part_lses: got shape {}, want [n, rows, heads] with contiguous heads",
          shape_text(part_lses));
  for (int32_t i = 0; i < 3; ++i) {
    require(part_lses.size(i) == parts.size(i), "part_lses: got shape {}, want that of parts, {}",
            shape_text(part_lses), shape_text(parts));
  }
  const auto size = [&](int32_t i) { return narrow("parts", parts.size(i)); };
  const RowsView to = rows_view("out", out, size(1), size(2), size(3), rules);
  if (lse.has_value()) check_apart("lse", *lse, "out", out);
  float* const to_lse = lse.has_value() ? lse_view("lse", *lse, size(1), size(2), rules) : nullptr;
  const RowParts from{.parts = address(parts),
                      .lses = static_cast<const float*>(address(part_lses)),
                      .part_stride = parts.stride(0),
                      .row_stride = parts.stride(1),
                      .head_stride = parts.stride(2),
                      .lse_part_stride = part_lses.stride(0),
                      .lse_row_stride = part_lses.stride(1),
                      .count = size(0),
                      .rows = size(1),
                      .heads = size(2),
                      .head_dim = size(3),
                      .dtype = rules.dtype};
  if (on_host) {
    merge_rows(from, to, to_lse);
  } else {
    merge_rows_on_cuda(from, to, to_lse, device, stream_of(device, stream));
  }
}

void check_written(ffi::String argument, ffi::TensorView written, ffi::String other_name,
                   ffi::TensorView other) {
  check_apart({argument.data(), argument.size()}, written, {other_name.data(), other_name.size()},
              other);
}

void upload(PlanRef plan, int64_t stream) {
  const std::lock_guard lock(plan->mutex);
  require(plan->cuda() != nullptr, "plan: got one for the host, want one for a CUDA device");
  plan->cuda()->upload(stream_of(plan->request().cuda_device, stream));
}

}  // namespace

void register_attend() {
  ffi::reflection::GlobalDef()
      .def("pando_attn.attend", Guarded<&attend_tensors>::call)
      .def("pando_attn.check_apart", Guarded<&check_written>::call)
      .def("pando_attn.merge_parts", Guarded<&merge_parts>::call)
      .def("pando_attn.upload", Guarded<&upload>::call);
}

}  // namespace pando::python
