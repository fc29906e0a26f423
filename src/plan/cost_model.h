// The cost model: what reading, computing and merging cost on a device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pando/attention.h"
#include "pando/profile.h"

namespace pando {

/// K and V bytes of one token at one kv head.
inline int64_t token_head_bytes(const AttentionSpec& spec) {
  return 2 * int64_t{spec.head_dim} * dtype_bytes(spec.kv_dtype_or_default());
}

/// Whose rates in a profile count. On the CPU the kernels of fp32 convert fp8 KV as those of fp16
/// do.
inline DType rates_dtype(const AttentionSpec& spec, Backend backend) {
  const bool converts = backend == Backend::kCpu && spec.dtype == DType::kF32 &&
                        spec.kv_dtype_or_default() == DType::kE4M3;
  return converts ? DType::kF16 : spec.dtype;
}

/// Costs of one head shape on one device. Times in microseconds.
///
/// A worker that attends `rows` packed rows to `tokens` tokens of one kv head computes for
/// tokens * compute_us(rows), and its share of the memory bandwidth delivers the tokens' K and V in
/// tokens * share_us; the longer of the two counts.
class CostModel {
 public:
  CostModel(const DeviceProfile& profile, const AttentionSpec& spec, bool batch_invariant)
      : profile_(profile),
        rate_(profile.rates[static_cast<size_t>(rates_dtype(spec, profile.backend))]),
        narrow_rows_(batch_invariant ? 0 : rate_.narrow_rows),
        peak_flops_per_us_(profile.rates[static_cast<size_t>(spec.dtype)].peak_flops_per_us),
        head_dim_(spec.head_dim),
        kv_heads_(spec.kv_heads),
        group_(spec.group()),
        token_head_bytes_(pando::token_head_bytes(spec)) {}

  int32_t narrow_rows() const { return narrow_rows_; }
  int32_t kv_heads() const { return kv_heads_; }
  int32_t group() const { return group_; }
  int64_t packed(int64_t rows) const { return rows * group_; }
  int32_t workers() const { return profile_.workers; }
  double launch_us() const { return profile_.launch_us; }
  double item_us() const { return profile_.item_us; }
  /// K and V bytes of one token at one kv head.
  int64_t token_head_bytes() const { return token_head_bytes_; }
  /// Multiply-adds of one row with one token at all kv heads, in FLOPs: both products.
  int64_t flops_a_row() const { return 4 * int64_t{head_dim_} * kv_heads_; }
  int64_t token_bytes() const { return token_head_bytes_ * kv_heads_; }

  /// Rows that the device really computes for `rows` packed rows.
  int64_t padded_rows(int64_t rows) const {
    if (rows <= narrow_rows_) return rows;
    const int64_t granule = rate_.row_granule;
    return (rows + granule - 1) / granule * granule;
  }

  /// One worker's compute time for one token of one kv head.
  double compute_us(int64_t rows) const {
    if (rows <= narrow_rows_) return 1e-3 * rate_.narrow_ns * head_dim_ * rows;
    const auto padded = static_cast<double>(padded_rows(rows));
    return 1e-3 *
           (head_dim_ * (rate_.convert_ns + padded * rate_.wide_ns) + padded * rate_.softmax_ns);
  }

  /// Time in which memory delivers `bytes`, all workers reading: the first time, and again.
  double dram_us(double bytes) const { return bytes / profile_.dram_bytes_per_us; }
  double again_us(double bytes, int64_t segment_bytes) const {
    return bytes /
           (is_cached(segment_bytes) ? profile_.cache_bytes_per_us : profile_.dram_bytes_per_us);
  }
  bool is_cached(int64_t segment_bytes) const { return segment_bytes <= profile_.cache_bytes; }

  /// Worker time of writing, reading and merging one partial row at one kv head.
  double partial_row_us() const { return profile_.partial_row_us * head_dim_ / 128.0; }

  double roof_us(double bytes, double flops) const {
    return std::max(dram_us(bytes), flops / peak_flops_per_us_);
  }

 private:
  const DeviceProfile& profile_;
  const KernelRate& rate_;
  int32_t narrow_rows_;
  double peak_flops_per_us_;
  int32_t head_dim_;
  int32_t kv_heads_;
  int32_t group_;
  int64_t token_head_bytes_;
};

}  // namespace pando
