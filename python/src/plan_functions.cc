// pando_attn.plan_*: making plans, and asking them.
#include <cmath>
#include <string>
#include <vector>

#include "plan_object.h"
#include "registration.h"
#include "tensors.h"

namespace pando::python {
namespace {

DType dtype_of(int64_t code) { return static_cast<DType>(narrow("dtype", code)); }

/// "cpu" with so many threads, "cuda" with a device, or "h100", which is only planned for.
/// `profile`, unless empty, is the JSON of one that replaces the stored one.
PlanRequest request_for(const std::string& device, int64_t index, int64_t threads,
                        const std::string& profile) {
  PlanRequest request;
  if (device == "cpu") {
    request.profile = cpu_profile(narrow("threads", threads));
  } else if (device == "cuda") {
    request.cuda_device = narrow("device", index);
    const std::string why_not = cuda_unavailable(*request.cuda_device);
    if (!why_not.empty()) fail(ErrorCode::kUnsupported, "device: got cuda:{}: {}", index, why_not);
    request.profile = cuda_profile(*request.cuda_device);
  } else {
    require(device == "h100", "device: got \"{}\", want one of cpu, cuda, cuda:N, h100", device);
    request.profile = h100_profile();
  }
  if (profile.empty()) return request;
  const DeviceProfile given = profile_from_json(profile);
  require(given.backend == request.profile.backend,
          "profile: got one for {}, want one for the device {}",
          given.backend == Backend::kCuda ? "cuda" : "cpu", device);
  require(threads == 0, "threads: got {} beside a profile, which has its own number; want 0",
          threads);
  request.profile = given;
  return request;
}

/// A plan object that has no plan yet.
PlanRef plan_new(ffi::String device, int64_t device_index, int64_t threads, int64_t q_heads,
                 int64_t kv_heads, int64_t head_dim, int64_t dtype, int64_t kv_dtype,
                 ffi::Optional<double> scale, double soft_cap, bool causal, int64_t window,
                 int64_t sharing, bool batch_invariant, int64_t cut_tokens, ffi::String profile) {
  PlanRequest request =
      request_for(std::string(device), device_index, threads, std::string(profile));
  request.spec = {.q_heads = narrow("q_heads", q_heads),
                  .kv_heads = narrow("kv_heads", kv_heads),
                  .head_dim = narrow("head_dim", head_dim),
                  .dtype = dtype_of(dtype),
                  .kv_dtype = dtype_of(kv_dtype),
                  .soft_cap = in_fp32("soft_cap", soft_cap),
                  .causal = causal,
                  .window = narrow("window", window)};
  if (scale.has_value()) request.spec.scale = in_fp32("scale", *scale);
  request.options = {.sharing = static_cast<Sharing>(narrow("share", sharing)),
                     .batch_invariant = batch_invariant,
                     .cut_tokens = narrow("cut_tokens", cut_tokens)};
  return PlanRef(ffi::make_object<PlanObject>(std::move(request)));
}

void plan_make(PlanRef plan, ffi::TensorView q_indptr, ffi::TensorView kv_len,
               ffi::TensorView page_indptr, ffi::TensorView page_ids, int64_t page_tokens,
               ffi::Optional<ffi::TensorView> visible, ffi::Optional<ffi::TensorView> tree_mask,
               ffi::Optional<ffi::TensorView> changed) {
  static_assert(sizeof(VisibleRange) == 2 * sizeof(int32_t));
  const BatchView batch{.q_indptr = host_ints("q_indptr", q_indptr),
                        .kv_len = host_ints("kv_len", kv_len),
                        .page_indptr = host_ints("page_indptr", page_indptr),
                        .page_ids = host_ints("page_ids", page_ids),
                        .page_tokens = narrow("page_tokens", page_tokens)};
  RowMasks masks;
  if (visible.has_value()) {
    const auto ints = host_ints("visible", *visible);
    masks.visible = {reinterpret_cast<const VisibleRange*>(ints.data()), ints.size() / 2};
  }
  if (tree_mask.has_value()) masks.tree_mask = host_masks("tree_mask", *tree_mask);
  std::optional<std::span<const int32_t>> listed;
  if (changed.has_value()) listed = host_ints("changed", *changed);
  const std::lock_guard lock(plan->mutex);
  plan->make(batch, masks, listed);
}

ffi::String plan_explain(PlanRef plan) {
  const std::lock_guard lock(plan->mutex);
  return explain(plan->plan());
}

ffi::String plan_json(PlanRef plan, bool with_items) {
  const std::lock_guard lock(plan->mutex);
  return to_json(plan->plan(), with_items);
}

/// What Python asks often, without a detour through JSON: see the names in _plan.py.
ffi::Array<ffi::Any> plan_numbers(PlanRef plan) {
  const std::lock_guard lock(plan->mutex);
  const PlanHeader& h = plan->plan().header();
  const PlanCost& c = h.cost;
  return {
      int64_t{h.rows},    int64_t{h.sequences},    h.total_bytes, plan->plan().workspace_bytes(),
      c.predicted_us,     c.predicted_unshared_us, c.roof_us,     c.kv_bytes,
      c.unshared_kv_bytes};
}

/// int32s [segments, 6]: parent, depth, token_begin, token_end, sequences, whether it is shared.
ffi::Bytes plan_segments(PlanRef plan) {
  constexpr size_t kFields = 6;
  const std::lock_guard lock(plan->mutex);
  const auto segments = plan->forest().segments();
  std::vector<int32_t> fields;
  fields.reserve(segments.size() * kFields);
  for (const Segment& s : segments) {
    fields.insert(fields.end(),
                  {s.parent, s.depth, s.token_begin, s.token_end, s.sequences(), int32_t{0}});
  }
  for (const Decision& d : plan->plan().decisions()) {
    // A caller that changed pages behind an update's back can have decisions on other segments.
    const auto segment = static_cast<size_t>(d.segment);
    if (d.reason == Reason::kShared && segment < segments.size()) fields[segment * kFields + 5] = 1;
  }
  return {reinterpret_cast<const char*>(fields.data()), fields.size() * sizeof(int32_t)};
}

CpuRunner cpu_new(int64_t threads) {
  return CpuRunner(ffi::make_object<CpuRunnerObject>(narrow("threads", threads)));
}
void cpu_renew(CpuRunner cpu) { cpu->renew(); }
int64_t cpu_threads(CpuRunner cpu) { return cpu->threads(); }

}  // namespace

void register_plans() {
  ffi::reflection::ObjectDef<PlanObject>();
  ffi::reflection::ObjectDef<CpuRunnerObject>();
  ffi::reflection::GlobalDef()
      .def("pando_attn.plan_new", Guarded<&plan_new>::call)
      .def("pando_attn.plan_make", Guarded<&plan_make>::call)
      .def("pando_attn.plan_explain", Guarded<&plan_explain>::call)
      .def("pando_attn.plan_json", Guarded<&plan_json>::call)
      .def("pando_attn.plan_numbers", Guarded<&plan_numbers>::call)
      .def("pando_attn.plan_segments", Guarded<&plan_segments>::call)
      .def("pando_attn.cpu_new", Guarded<&cpu_new>::call)
      .def("pando_attn.cpu_renew", Guarded<&cpu_renew>::call)
      .def("pando_attn.cpu_threads", Guarded<&cpu_threads>::call);
}

}  // namespace pando::python
