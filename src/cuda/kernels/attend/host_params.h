// From a plan and the arguments of a call to what a launch hands over. Host code without CUDA
// types: the tests run the kernel's source on the host, and hand over the same.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numbers>
#include <span>
#include <utility>

#include "cuda/kernels/attend/params.h"
#include "pando/attention.h"
#include "pando/plan.h"
#include "plan/kv_steps.h"

namespace pando::cuda {

/// K or V as a tensor map describes it: [elements of a row, tokens of a granule, rows of head_dim,
/// granules of a page, KvSteps], in boxes of `box_tokens` tokens of one page at one kv head: all
/// rows of each granule, one granule after another. A row has 128 bytes, or all of a head_dim that
/// has less.
struct TensorGeometry {
  int64_t sizes[5];
  int64_t stride_bytes[4];  ///< of all dimensions but the first
  int32_t box[5];

  TensorGeometry(const KvLayout& kv, DType kv_dtype, int32_t box_tokens) {
    const int64_t element_bytes = dtype_bytes(kv_dtype);
    const int64_t width = std::min<int64_t>(128 / element_bytes, kv.head_dim);
    const int32_t tokens = PageShape::of(kv.page_tokens).small_box_tokens();
    const KvSteps steps = KvSteps::of(kv);
    const int64_t all[] = {width, tokens, kv.head_dim / width, kv.page_tokens / tokens,
                           steps.entries(kv)};
    std::ranges::copy(all, sizes);
    const int32_t one_box[] = {static_cast<int32_t>(width), tokens, static_cast<int32_t>(all[2]),
                               box_tokens / tokens, 1};
    std::ranges::copy(one_box, box);
    // That of a page of one token may be anything.
    const int64_t token_stride = kv.page_tokens > 1 ? kv.token_stride : kv.head_dim;
    stride_bytes[0] = element_bytes * token_stride;
    stride_bytes[1] = element_bytes * width;
    stride_bytes[2] = element_bytes * token_stride * tokens;
    stride_bytes[3] = element_bytes * steps.unit;
  }
};

/// `schedule` and `control` are where the plan's schedule and the control block lie on the device.
inline AttendParams make_params(const PlanHeader& h, const AttendArgs& args,
                                const std::byte* schedule, std::byte* control) {
  constexpr uint32_t kTwoSigns = 0x80008000;  // of two 16-bit elements
  const auto strides = [&](int64_t row_stride, int64_t head_stride) {
    const bool contiguous = row_stride == 0 && head_stride == 0;
    return contiguous ? std::pair{int64_t{h.q_heads} * h.head_dim, int64_t{h.head_dim}}
                      : std::pair{row_stride, head_stride};
  };
  const auto [q_row_stride, q_head_stride] = strides(args.q.row_stride, args.q.head_stride);
  const auto [out_row_stride, out_head_stride] = strides(args.out.row_stride, args.out.head_stride);
  const int64_t q_rows_end = int64_t{h.rows - 1} * q_row_stride + (h.q_heads - 1) * q_head_stride;
  const KvSteps steps = KvSteps::of(args.kv);
  const auto area = [&](const void* from, int64_t bytes) {
    constexpr int64_t kLine = 128, kMost = 32 << 10;
    const auto begin = (reinterpret_cast<uintptr_t>(from) + 15) & ~uintptr_t{15};
    const auto end = (reinterpret_cast<uintptr_t>(from) + bytes) & ~uintptr_t{15};
    const int64_t share = (bytes / kLine / h.workers + 1) * kLine;
    return PrefetchedArea{static_cast<int64_t>(end - begin),
                          static_cast<int32_t>(std::min(share, kMost))};
  };
  const auto page_ids_bytes = static_cast<int64_t>(args.page_ids.size_bytes());
  float scale_ln = h.scale == 0 ? 1.0f : std::abs(h.scale);
  const float into_cap = h.soft_cap > 0 ? scale_ln / h.soft_cap : 0.0f;
  if (h.soft_cap > 0) scale_ln = h.soft_cap;
  return {.schedule = schedule,
          .control = reinterpret_cast<uint64_t*>(control),
          .page_ids = args.page_ids.data(),
          .partials = reinterpret_cast<float*>(args.workspace.data()),
          .q = args.q.data,
          .q_row_stride = q_row_stride,
          .q_head_stride = q_head_stride,
          .out = args.out.data,
          .out_row_stride = out_row_stride,
          .out_head_stride = out_head_stride,
          .lse = args.lse,
          .q_heads = h.q_heads,
          .group = h.q_heads / h.kv_heads,
          .by_group = Divider::by(h.q_heads / h.kv_heads),
          .pages = PageShape::of(h.page_tokens),
          .page_step = static_cast<int32_t>(steps.page),
          .head_step = static_cast<int32_t>(steps.head),
          .k = static_cast<const std::byte*>(args.k),
          .v = static_cast<const std::byte*>(args.v),
          .page_stride = args.kv.page_stride,
          .head_stride = args.kv.head_stride,
          .token_stride = args.kv.token_stride,
          .scale_log2 = scale_ln * std::numbers::log2e_v<float>,
          .into_cap = into_cap,
          .sinks = args.sinks,
          .q_keep = h.scale == 0 ? 0 : ~uint32_t{0},
          .q_flip = h.scale < 0 ? kTwoSigns : 0,
          .schedule_area = area(schedule, h.schedule_bytes),
          .page_ids_area = area(args.page_ids.data(), page_ids_bytes),
          .q_area = area(args.q.data, (q_rows_end + h.head_dim) * dtype_bytes(h.dtype)),
          .k_scale = args.k_scale.data(),
          .v_scale = args.v_scale.data(),
          .k_scale_stride = args.k_scale.size() > 1 ? 1 : 0,
          .v_scale_stride = args.v_scale.size() > 1 ? 1 : 0};
}

/// Gives each thread block of a launch, in a copy of the plan's schedule, the start of that in
/// whose place it runs: see find_placement.
inline void place_starts(const Plan& plan, std::span<const int32_t> placement,
                         std::byte* schedule) {
  std::byte* to = schedule + ScheduleHeader::kStartsOffset;
  const std::byte* const from = plan.schedule().data() + ScheduleHeader::kStartsOffset;
  for (const int32_t thread_block : placement) {
    std::memcpy(to, from + thread_block * sizeof(Start), sizeof(Start));
    to += sizeof(Start);
  }
}

}  // namespace pando::cuda
