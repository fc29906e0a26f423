#include "cases/device_case.h"

#include <cstring>
#include <unordered_map>

#include "cases/generate.h"
#include "cases/rng.h"

namespace pando::cases {
namespace {

DeviceBuffer on_device(const Buffer& host, int64_t elements, DType dtype, uint64_t seed) {
  if (host.data() != nullptr) return DeviceBuffer(host.span());
  DeviceBuffer made(elements * dtype_bytes(dtype));
  made.fill_normal(dtype, elements, dtype == DType::kE4M3 ? kFp8Sigma : 1.0f, seed);
  return made;
}

DeviceBuffer poisoned_on_device(size_t bytes) {
  DeviceBuffer buffer(bytes + kGuardBytes);
  buffer.fill(kPoison);
  return buffer;
}

int64_t q_elements(const Case& problem) { return problem.q_offset(problem.tables.q_rows(), 0); }

}  // namespace

DeviceCase::DeviceCase(const Case& problem)
    : problem_(problem),
      q_(on_device(problem.q, q_elements(problem), problem.spec.dtype, mix_seed(1, 0))),
      k_(on_device(problem.k, problem.kv_elements(), problem.kv_dtype(), mix_seed(1, 1))),
      v_(on_device(problem.v, problem.kv_elements(), problem.kv_dtype(), mix_seed(1, 2))),
      page_ids_(std::as_bytes(std::span(problem.tables.page_ids))),
      sinks_(std::as_bytes(std::span(problem.sinks))),
      k_scale_(std::as_bytes(std::span(problem.k_scale))),
      v_scale_(std::as_bytes(std::span(problem.v_scale))) {}

AttendArgs DeviceCase::inputs() const {
  AttendArgs args;
  args.q = {q_.data(), problem_.q_row_stride, problem_.q_head_stride};
  args.k = k_.data();
  args.v = v_.data();
  args.kv = problem_.kv();
  args.page_ids = {reinterpret_cast<const int32_t*>(page_ids_.data()),
                   problem_.tables.page_ids.size()};
  if (!problem_.sinks.empty()) args.sinks = reinterpret_cast<const float*>(sinks_.data());
  args.k_scale = {reinterpret_cast<const float*>(k_scale_.data()), problem_.k_scale.size()};
  args.v_scale = {reinterpret_cast<const float*>(v_scale_.data()), problem_.v_scale.size()};
  return args;
}

Case DeviceCase::download(const std::vector<int32_t>& sequences) const {
  Case whole;
  whole.name = problem_.name;
  whole.tables = problem_.tables;
  whole.spec = problem_.spec;
  whole.visible = problem_.visible;
  whole.tree_mask = problem_.tree_mask;
  whole.sinks = problem_.sinks;
  whole.k_scale = problem_.k_scale;
  whole.v_scale = problem_.v_scale;
  whole.order = problem_.order;
  whole.kv_gap = problem_.kv_gap;
  whole.q_row_stride = problem_.q_row_stride;
  whole.q_head_stride = problem_.q_head_stride;
  whole.q = Buffer(q_.size());
  q_.download(whole.q.span());
  Case part = subset(whole, sequences);

  // Pages get new ids in the order in which they are met; a page is one piece of K and of V.
  std::unordered_map<int32_t, int32_t> new_id;
  std::vector<int32_t> old_id;
  for (int32_t& id : part.tables.page_ids) {
    const auto [at, is_new] = new_id.try_emplace(id, static_cast<int32_t>(old_id.size()));
    if (is_new) old_id.push_back(id);
    id = at->second;
  }
  part.tables.num_pages = static_cast<int64_t>(old_id.size());
  const size_t page_bytes = problem_.kv().page_stride * dtype_bytes(problem_.kv_dtype());
  part.k = Buffer(old_id.size() * page_bytes);
  part.v = Buffer(old_id.size() * page_bytes);
  for (size_t i = 0; i < old_id.size(); ++i) {
    k_.download(part.k.span().subspan(i * page_bytes, page_bytes), old_id[i] * page_bytes);
    v_.download(part.v.span().subspan(i * page_bytes, page_bytes), old_id[i] * page_bytes);
  }
  return part;
}

DeviceRun::DeviceRun(const Case& problem, const DeviceCase& inputs, const Plan& plan,
                     CudaExecutor& executor, bool strided, bool want_lse)
    : problem_(problem),
      executor_(executor),
      on_device_(executor, std::max<int64_t>(1, plan.schedule().size())),
      shape_(out_shape(problem, strided)),
      out_(poisoned_on_device(shape_.elements() * dtype_bytes(problem.spec.dtype))),
      workspace_(poisoned_on_device(plan.workspace_bytes())),
      workspace_bytes_(plan.workspace_bytes()),
      args_(inputs.inputs()) {
  on_device_.assign(plan);
  args_.out = {out_.data(), shape_.row_stride, shape_.head_stride};
  if (want_lse) {
    lse_ = DeviceBuffer((shape_.rows * shape_.heads + 1) * sizeof(float));
    lse_.fill(kPoison);
    args_.lse = reinterpret_cast<float*>(lse_.data());
  }
  args_.workspace = {workspace_.data(), workspace_bytes_};
}

Output DeviceRun::download() const {
  Output output;
  output.row_stride = shape_.row_stride;
  output.head_stride = shape_.head_stride;
  output.out = Buffer(out_.size());
  out_.download(output.out.span());
  output.lse.resize(lse_.size() / sizeof(float));
  lse_.download(std::as_writable_bytes(std::span(output.lse)));
  std::byte guard[kGuardBytes];
  workspace_.download(guard, workspace_bytes_);
  find_overrun(output, shape_, dtype_bytes(problem_.spec.dtype), guard);
  return output;
}

}  // namespace pando::cases
