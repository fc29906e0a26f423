#include "cpu/probe.h"

#include <algorithm>
#include <bit>

#include "plan/scratch.h"

namespace pando {
namespace {

/// `count` 64-byte aligned bytes at the end of a growing layout.
int64_t place(int64_t& end, int64_t count) {
  const int64_t at = end;
  end = round_up(end + count, 64);
  return at;
}

}  // namespace

KernelProbe::KernelProbe(DType dtype, int32_t rows, int32_t head_dim, int32_t tokens,
                         int64_t span_bytes) {
  pages_ = (tokens + kPageTokens - 1) / kPageTokens;
  const int64_t page_elements = int64_t{kPageTokens} * head_dim;
  const int64_t tensor_bytes = pages_ * page_elements * dtype_bytes(dtype);
  regions_ = std::max<int64_t>(1, span_bytes / (2 * tensor_bytes));
  const int64_t row_bytes = int64_t{rows} * head_dim * static_cast<int64_t>(sizeof(float));
  int64_t end = 0;
  const int64_t k = place(end, regions_ * tensor_bytes);
  const int64_t v = place(end, regions_ * tensor_bytes);
  const int64_t q = place(end, row_bytes);
  const int64_t out = place(end, row_bytes);
  const int64_t scratch = place(end, cpu_scratch_bytes(rows, kTileTokens, head_dim));
  // Small positive numbers in every element type.
  memory_.assign((end + 64) / 8, 0x3c103c203c303c40u);
  auto* const memory = reinterpret_cast<std::byte*>(memory_.data());
  auto* const base = memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
  for (int32_t r = 0; r < rows; ++r) rows_.push_back({r, 0, tokens, tokens, 0});
  page_ids_.resize(pages_);

  call_.dtype = call_.kv_dtype = dtype;
  call_.head_dim = head_dim;
  call_.q_heads = 1;
  call_.group = 1;
  call_.scale = 0.1f;
  call_.rows = rows_.data();
  call_.q = base + q;
  call_.q_row_stride = call_.q_head_stride = head_dim;
  call_.k = base + k;
  call_.v = base + v;
  call_.page_stride = call_.head_stride = page_elements;
  call_.token_stride = head_dim;
  call_.page_shift = std::countr_zero(static_cast<uint32_t>(kPageTokens));
  call_.out = base + out;
  call_.out_row_stride = call_.out_head_stride = head_dim;
  unit_.call = &call_;
  unit_.page_ids = page_ids_.data();
  unit_.scale = call_.score_scale(0);
  unit_.value_scale = call_.value_scale(0);
  unit_.token_end = tokens;
  unit_.rows = rows;
  unit_.partial = -1;
  unit_.full = true;
  unit_.scratch = base + scratch;
}

void KernelProbe::run(UnitKernel kernel) {
  for (int32_t i = 0; i < pages_; ++i) page_ids_[i] = static_cast<int32_t>(region_ * pages_ + i);
  region_ = (region_ + 1) % regions_;
  kernel(unit_);
}

double KernelProbe::flops() const { return 4.0 * call_.head_dim * unit_.rows * unit_.token_end; }
double KernelProbe::kv_bytes() const {
  return 2.0 * call_.head_dim * static_cast<double>(dtype_bytes(call_.dtype)) * unit_.token_end;
}

}  // namespace pando
