// Every kernel on every vector target that this machine can run, as the parameter of a test.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "cpu/attend_case.h"
#include "cpu/kernels.h"
#include "cpu/matrix.h"
#include "hwy/highway.h"

namespace pando::testing {

enum class Path { kNarrow, kWide, kTiles, kDots, kFewDots };

struct Target {
  int64_t hwy;
  Path path;
  std::string name;
};

inline std::vector<Target> targets() {
  std::vector<Target> all;
  for (int64_t bits = hwy::SupportedTargets(); bits != 0; bits &= bits - 1) {
    const int64_t one = bits & -bits;
    if ((one & (HWY_AVX3 | HWY_AVX2 | HWY_SSE4 | HWY_NEON)) == 0) continue;
    const std::string name = hwy::TargetName(one);
    all.push_back({one, Path::kNarrow, name + "_narrow"});
    all.push_back({one, Path::kWide, name + "_wide"});
  }
  if (tiles_available()) all.push_back({HWY_AVX3, Path::kTiles, "AMX"});
  if (dots_available()) {
    all.push_back({HWY_AVX3, Path::kDots, "AVX3_BF16_wide"});
    all.push_back({HWY_AVX3, Path::kFewDots, "AVX3_BF16_narrow"});
  }
  return all;
}

class Kernels : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    hwy::SetSupportedTargetsForTest(GetParam().hwy);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  void TearDown() override {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  std::vector<DType> dtypes() const {
    switch (GetParam().path) {
      case Path::kNarrow:
      case Path::kWide: break;
      default: return {DType::kBF16};
    }
    return {DType::kF32, DType::kBF16, DType::kF16};
  }
  KernelSet kernels(DType dtype, bool fp8 = false) const {
    KernelSet set = vector_kernels(dtype, fp8 ? DType::kE4M3 : dtype);
    if (GetParam().path == Path::kTiles) {
      set.wide = attend_tiles;
      set.tiles = true;
    }
    if (GetParam().path == Path::kDots) set.wide = attend_dots;
    if (GetParam().path == Path::kFewDots) {
      set.narrow = fp8 ? attend_few_dots_fp8 : attend_few_dots;
    }
    return set;
  }
  DeviceProfile profile(int workers = 1) const {
    const bool few = GetParam().path == Path::kNarrow || GetParam().path == Path::kFewDots;
    return profile_with(workers, few ? 1'000'000 : 0);
  }
  void expect_correct(const AttendCase& c, const PlanOptions& options = {}, int workers = 1) {
    ThreadPool pool(workers);
    const bool fp8 = c.spec.kv_dtype_or_default() == DType::kE4M3;
    const KernelSet set = kernels(c.spec.dtype, fp8);
    const Output output = c.run(c.plan(profile(workers), options), set, pool);
    const CheckResult result = c.check(output);
    EXPECT_TRUE(result.passed()) << fmt::format(
        "{} {} q_heads {} kv_heads {} head_dim {} page {}: out {} of {}, lse {} of {}",
        GetParam().name, dtype_name(c.spec.dtype), c.spec.q_heads, c.spec.kv_heads, c.spec.head_dim,
        c.page_tokens, result.got.max_err_out, result.allowed.out, result.got.max_err_lse,
        result.allowed.lse);
  }
};

inline AttentionSpec spec_of(DType dtype, int32_t q_heads, int32_t kv_heads, int32_t head_dim) {
  AttentionSpec spec;
  spec.q_heads = q_heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = head_dim;
  spec.dtype = dtype;
  return spec;
}

}  // namespace pando::testing
