#include "plan/check_args.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "core/check.h"
#include "plan/cuda_shapes.h"
#include "plan/kv_steps.h"
#include "plan/scratch.h"
#include "plan/variants.h"

namespace pando {
namespace {

/// One dimension of a strided tensor.
struct Dimension {
  std::string_view name;  // of its stride
  int64_t size;
  int64_t stride;
};

/// Refuses strides that are negative, make two elements share memory, or overflow an offset.
/// The innermost dimension is head_dim with stride 1.
template <size_t N>
void check_strides(std::string_view argument, std::array<Dimension, N> dimensions,
                   int64_t head_dim) {
  for (const Dimension& d : dimensions) {
    require(d.stride >= 0, "{}.{}: got {}, want at least 0", argument, d.name, d.stride);
  }
  std::sort(dimensions.begin(), dimensions.end(),
            [](const Dimension& a, const Dimension& b) { return a.stride < b.stride; });
  constexpr int64_t kLimit = std::numeric_limits<int64_t>::max() / 8;
  int64_t extent = head_dim;
  for (const Dimension& d : dimensions) {
    if (d.size <= 1) continue;
    require(d.stride >= extent,
            "{}.{}: got {} elements for {} entries, want at least {} so that none overlap",
            argument, d.name, d.stride, d.size, extent);
    require(d.stride <= (kLimit - extent) / (d.size - 1),
            "{}.{}: got {} elements for {} entries, want offsets that fit in 63 bits", argument,
            d.name, d.stride, d.size);
    extent += d.stride * (d.size - 1);
  }
}

void check_pointer(std::string_view argument, const void* pointer, int64_t alignment) {
  require(pointer != nullptr, "{}: got a null pointer, want memory of the plan's backend",
          argument);
  require(reinterpret_cast<uintptr_t>(pointer) % alignment == 0,
          "{}: got address {}, want it aligned to {} bytes", argument, pointer, alignment);
}

/// Elements that the kernels move at once: rows must start at multiples of them.
int64_t vector_elements(const PlanHeader& h, DType dtype) {
  return h.backend == Backend::kCuda ? 16 / dtype_bytes(dtype) : 1;
}

/// Strides that a vector access or TMA follows.
template <size_t N>
void check_vector_strides(std::string_view argument, const std::array<Dimension, N>& dimensions,
                          const PlanHeader& h, DType dtype) {
  const int64_t unit = vector_elements(h, dtype);
  for (const Dimension& d : dimensions) {
    require(d.size <= 1 || d.stride % unit == 0,
            "{}.{}: got {} elements, want a multiple of {} for the CUDA backend", argument, d.name,
            d.stride, unit);
  }
}

void check_rows(std::string_view argument, const void* data, int64_t row_stride,
                int64_t head_stride, const PlanHeader& h) {
  check_pointer(argument, data, dtype_bytes(h.dtype) * vector_elements(h, h.dtype));
  if (row_stride == 0 && head_stride == 0) return;  // contiguous
  const std::array<Dimension, 2> dimensions{
      {{"row_stride", h.rows, row_stride}, {"head_stride", h.q_heads, head_stride}}};
  check_strides(argument, dimensions, h.head_dim);
  check_vector_strides(argument, dimensions, h, h.dtype);
}

void check_kv(const KvLayout& kv, const PlanHeader& h) {
  require(kv.page_tokens == h.page_tokens, "kv.page_tokens: got {}, want {} as in the plan",
          kv.page_tokens, h.page_tokens);
  require(kv.kv_heads == h.kv_heads, "kv.kv_heads: got {}, want {} as in the plan", kv.kv_heads,
          h.kv_heads);
  require(kv.head_dim == h.head_dim, "kv.head_dim: got {}, want {} as in the plan", kv.head_dim,
          h.head_dim);
  require(kv.num_pages > h.max_page_id,
          "kv.num_pages: got {}, want more than {}, the largest page id in the plan", kv.num_pages,
          h.max_page_id);
  const std::array<Dimension, 3> dimensions{{{"page_stride", kv.num_pages, kv.page_stride},
                                             {"head_stride", kv.kv_heads, kv.head_stride},
                                             {"token_stride", kv.page_tokens, kv.token_stride}}};
  check_strides("kv", dimensions, h.head_dim);
  check_vector_strides("kv", dimensions, h, h.kv_dtype);
  if (h.backend == Backend::kCpu) return;
  for (const Dimension& d : dimensions) {
    constexpr int64_t kMostBytes = int64_t{1} << 40;  // of a stride of a tensor map
    require(d.size <= 1 || d.stride < kMostBytes / dtype_bytes(h.kv_dtype),
            "kv.{}: got {} elements, want less than 2^40 bytes for the CUDA backend", d.name,
            d.stride);
  }
  require(
      cuda::KvSteps::of(kv).fit(kv),
      "kv.page_stride: got {} elements for {} pages and a head_stride of {}, want less than 2^31 "
      "times their greatest common divisor in all for the CUDA backend",
      kv.page_stride, kv.num_pages, kv.head_stride);
}

void check_sinks(const float* sinks, const PlanHeader& h) {
  check_variant(Variant::kSinks, h.backend);
  check_pointer("sinks", sinks, alignof(float));
  if (h.backend != Backend::kCpu) return;  // not host memory
  for (int32_t head = 0; head < h.q_heads; ++head) {
    require(sinks[head] < std::numeric_limits<float>::infinity(),
            "sinks[{}]: got {}, want a finite number, or -inf for none", head, sinks[head]);
  }
}

/// `scales`: of K or of V.
void check_scales(std::string_view argument, std::span<const float> scales, const PlanHeader& h) {
  if (h.kv_dtype != DType::kE4M3) {
    require(scales.empty(), "{}: got {} scales, want none for KV of {}", argument, scales.size(),
            dtype_name(h.kv_dtype));
    return;
  }
  require(scales.size() == 1 || scales.size() == static_cast<size_t>(h.kv_heads),
          "{}: got {} scales, want 1, or {} for as many kv heads, since KV is fp8", argument,
          scales.size(), h.kv_heads);
  check_pointer(argument, scales.data(), alignof(float));
  if (h.backend != Backend::kCpu) return;  // not host memory
  require_positive(argument, scales);
}

/// A plan from bytes may say anything; the kernels rely on these.
void check_plan(const PlanHeader& h) {
  const int64_t partial_rows =
      h.backend == Backend::kCpu ? int64_t{h.kv_heads} * h.partial_slots : h.partial_rows;
  const int64_t row_bytes = (int64_t{h.head_dim} + 1) * int64_t{sizeof(float)};
  require(partial_rows <= h.partials_bytes / row_bytes,
          "plan: got {} bytes of partials, want {} for each of {} rows", h.partials_bytes,
          row_bytes, partial_rows);
}

void check_cpu_plan(const PlanHeader& h) {
  require(h.head_dim % 8 == 0 && h.head_dim <= 256,
          "plan: got a head_dim of {}, want a multiple of 8 up to 256", h.head_dim);
  require(std::has_single_bit(static_cast<uint32_t>(h.page_tokens)),
          "plan: got pages of {} tokens, want a power of two", h.page_tokens);
  const int64_t scratch_bytes = cpu_scratch_bytes(h.row_tile, h.kv_tile, h.head_dim);
  require(h.scratch_bytes >= scratch_bytes && h.scratch_bytes % 64 == 0,
          "plan: got {} scratch bytes for each worker, want a multiple of 64 from {} on",
          h.scratch_bytes, scratch_bytes);
}

void check_cuda_plan(const PlanHeader& h) {
  require(cuda_supports({h.dtype, h.head_dim}) && cuda_supports_pages(h.page_tokens),
          "plan: got {} x {} with pages of {}, want one of {} with pages of {}", h.head_dim,
          dtype_name(h.dtype), h.page_tokens, cuda_shapes_text(), cuda_pages_text());
  if (h.kv_dtype == DType::kE4M3) {
    check_variant(Variant::kFp8Kv, h.backend);
    require(cuda_supports_fp8(h.head_dim),
            "plan: got fp8 KV of head_dim {}, want a head_dim of 64 or 128", h.head_dim);
  }
  if (h.soft_cap > 0) check_variant(Variant::kSoftCap, h.backend);
  if (h.tree_rows > 0) check_variant(Variant::kTreeMask, h.backend);
}

std::string_view backend_name(Backend backend) {
  return backend == Backend::kCpu ? "the CPU" : "CUDA";
}

}  // namespace

void check_plan_backend(const Plan& plan, Backend backend) {
  require(!plan.bytes().empty(), "plan: got an empty plan, want one made by Planner::plan");
  const PlanHeader& h = plan.header();
  if (h.backend != backend) {
    fail(ErrorCode::kTypeMismatch, "plan: got one made for {}, want one made for {}",
         backend_name(h.backend), backend_name(backend));
  }
}

void check_args(const Plan& plan, const AttendArgs& args, Backend backend) {
  check_plan_backend(plan, backend);
  check_args(plan.header(), args);
}

void check_args(const PlanHeader& h, const AttendArgs& args) {
  if (h.rows == 0) return;
  check_plan(h);
  h.backend == Backend::kCpu ? check_cpu_plan(h) : check_cuda_plan(h);
  check_rows("q", args.q.data, args.q.row_stride, args.q.head_stride, h);
  check_rows("out", args.out.data, args.out.row_stride, args.out.head_stride, h);
  if (args.lse != nullptr) check_pointer("lse", args.lse, alignof(float));
  if (args.sinks != nullptr) check_sinks(args.sinks, h);
  check_scales("k_scale", args.k_scale, h);
  check_scales("v_scale", args.v_scale, h);
  if (h.items > 0 || h.units > 0) {
    const int64_t alignment = dtype_bytes(h.kv_dtype) * vector_elements(h, h.kv_dtype);
    check_pointer("k", args.k, alignment);
    check_pointer("v", args.v, alignment);
    check_kv(args.kv, h);
    const auto ids = static_cast<int64_t>(args.page_ids.size());
    require(ids == 0 || args.page_ids.data() != nullptr,
            "page_ids: got a null pointer, want {} page ids", h.page_table_len);
    require(ids >= h.page_table_len,
            "page_ids: got {} ids, want at least {}, the ids that the plan was made from", ids,
            h.page_table_len);
  }
  const int64_t wanted_bytes = workspace_bytes(h);
  const auto got_bytes = static_cast<int64_t>(args.workspace.size());
  require(got_bytes >= wanted_bytes, "workspace: got {} bytes, want at least {}", got_bytes,
          wanted_bytes);
  if (wanted_bytes > 0) check_pointer("workspace", args.workspace.data(), 64);
}

}  // namespace pando
