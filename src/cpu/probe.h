// Runs one kernel on made-up data, to measure its rate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/kernels.h"
#include "pando/attention.h"

namespace pando {

/// A tile of `rows` rows of one head against `tokens` tokens. With span_bytes = 0 every run reads
/// the same KV, so that it comes from cache; else consecutive runs walk through so much memory.
class KernelProbe {
 public:
  KernelProbe(DType dtype, int32_t rows, int32_t head_dim, int32_t tokens, int64_t span_bytes);
  KernelProbe(const KernelProbe&) = delete;
  KernelProbe& operator=(const KernelProbe&) = delete;

  void run(UnitKernel kernel);
  double flops() const;     ///< of one run
  double kv_bytes() const;  ///< of one run

 private:
  static constexpr int32_t kPageTokens = 64;
  std::vector<uint64_t> memory_;
  std::vector<PlanRow> rows_;
  std::vector<int32_t> page_ids_;
  CallView call_{};
  Unit unit_{};
  int64_t regions_;
  int64_t region_ = 0;
  int32_t pages_;
};

}  // namespace pando
