// attend as users call it: threads, determinism, strides, allocation, shapes that broke others.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "cpu/attend_case.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "support/allocation_counter.h"

namespace pando::testing {
namespace {

constexpr DType kAllDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

AttentionSpec spec_of(DType dtype, int32_t q_heads, int32_t kv_heads, int32_t head_dim) {
  AttentionSpec spec;
  spec.q_heads = q_heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = head_dim;
  spec.dtype = dtype;
  return spec;
}

Output attend_case(const AttendCase& c, const Plan& plan, CpuExecutor& executor) {
  const Workspace workspace(plan.workspace_bytes());
  Output output = c.blank_output();
  attend(plan, c.args(output, workspace.span()), executor);
  return output;
}

TEST(Attend, matches_the_oracle_with_every_sharing) {
  CpuExecutor executor(2);
  for (const DType dtype : kAllDTypes) {
    const AttendCase c(spec_of(dtype, 8, 2, 128), 16,
                       {{1, 300, 8}, {2, 259, 8}, {1, 130, 8}, {4, 511, 8}, {1, 128, 8}, {1, 7}});
    for (const Sharing sharing : {Sharing::kAuto, Sharing::kNone, Sharing::kAll}) {
      for (const bool invariant : {false, true}) {
        PlanOptions options;
        options.sharing = sharing;
        options.batch_invariant = invariant;
        options.cut_tokens = 64;
        const Output output = attend_case(c, c.plan(cpu_profile(2), options), executor);
        const CheckResult result = c.check(output);
        EXPECT_TRUE(result.passed())
            << dtype_name(dtype) << " sharing " << static_cast<int>(sharing) << " invariant "
            << invariant << " out " << result.got.max_err_out << " of " << result.allowed.out;
      }
    }
  }
}

TEST(Attend, gives_the_same_bits_with_any_number_of_threads) {
  const AttendCase c(spec_of(DType::kBF16, 8, 2, 64), 16,
                     {{1, 300, 8}, {2, 259, 8}, {1, 130, 8}, {4, 511, 8}});
  PlanOptions options;
  options.sharing = Sharing::kAll;
  const Plan plan = c.plan(cpu_profile(3), options);
  CpuExecutor one(1);
  const Output expected = attend_case(c, plan, one);
  for (const int threads : {2, 3, 5}) {
    CpuExecutor executor(threads);
    for (int run = 0; run < 20; ++run) EXPECT_EQ(attend_case(c, plan, executor), expected);
  }
}

TEST(Attend, does_not_allocate) {
  CpuExecutor executor(2);
  const AttendCase c(spec_of(DType::kBF16, 8, 2, 64), 16, {{1, 300, 8}, {2, 259, 8}, {1, 130, 8}});
  PlanOptions options;
  options.sharing = Sharing::kAll;
  const Plan plan = c.plan(cpu_profile(2), options);
  const Workspace workspace(plan.workspace_bytes());
  Output output = c.blank_output();
  const AttendArgs args = c.args(output, workspace.span());
  attend(plan, args, executor);  // the first call may detect the processor
  const int64_t before = allocations();
  for (int run = 0; run < 10; ++run) attend(plan, args, executor);
  EXPECT_EQ(allocations(), before);
}

TEST(Attend, follows_row_and_head_strides) {
  CpuExecutor executor(1);
  const AttendCase c(spec_of(DType::kF32, 4, 2, 64), 16, {{1, 100, 4}, {2, 90, 4}});
  const Plan plan = c.plan(cpu_profile(1));
  const Output expected = attend_case(c, plan, executor);
  const int64_t rows = c.q_rows;
  struct Strides {
    int64_t row, head;
  };
  for (const Strides& s :
       {Strides{4 * 80 + 8, 80}, Strides{64, 64 * rows}, Strides{72, 72 * rows}}) {
    const int64_t extent = s.row * rows + s.head * 4;
    std::vector<float> q(extent, NAN), out(extent, -7.0f), lse(rows * 4);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t d = 0; d < 64; ++d) {
          q[r * s.row + h * s.head + d] =
              load_element(c.q.data(), (r * 4 + h) * 64 + d, DType::kF32);
        }
      }
    }
    const Workspace workspace(plan.workspace_bytes());
    Output unused = c.blank_output();
    AttendArgs args = c.args(unused, workspace.span());
    args.q = {q.data(), s.row, s.head};
    args.out = {out.data(), s.row, s.head};
    args.lse = lse.data();
    attend(plan, args, executor);
    EXPECT_EQ(lse, expected.lse);
    int64_t untouched = 0;
    for (const float value : out) untouched += value == -7.0f;
    EXPECT_EQ(untouched, extent - rows * 4 * 64);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t d = 0; d < 64; ++d) {
          ASSERT_EQ(out[r * s.row + h * s.head + d],
                    load_element(expected.out.data(), (r * 4 + h) * 64 + d, DType::kF32));
        }
      }
    }
  }
}

TEST(Attend, works_without_lse) {
  CpuExecutor executor(2);
  const AttendCase c(spec_of(DType::kF16, 4, 2, 64), 16, {{1, 100, 4}, {2, 90, 4}});
  PlanOptions options;
  options.sharing = Sharing::kAll;
  const Plan plan = c.plan(cpu_profile(2), options);
  const Output expected = attend_case(c, plan, executor);
  const Workspace workspace(plan.workspace_bytes());
  Output output = c.blank_output();
  AttendArgs args = c.args(output, workspace.span());
  args.lse = nullptr;
  attend(plan, args, executor);
  EXPECT_EQ(output.out, expected.out);
}

TEST(Attend, handles_rows_without_kv_and_batches_without_rows) {
  CpuExecutor executor(2);
  for (const DType dtype : kAllDTypes) {
    const AttendCase none(spec_of(dtype, 16, 1, 64), 16, std::vector<Sequence>(16, {2, 0}));
    EXPECT_TRUE(none.check(attend_case(none, none.plan(cpu_profile(2)), executor)).passed());
    const AttendCase some(spec_of(dtype, 4, 2, 64), 4, {{2, 0}, {131, 4}, {1, 4}, {0, 9}});
    EXPECT_TRUE(some.check(attend_case(some, some.plan(cpu_profile(2)), executor)).passed());
  }
  const AttendCase empty(spec_of(DType::kF32, 4, 2, 64), 16, {{0, 40}, {0, 0}});
  attend(empty.plan(cpu_profile(2)), AttendArgs{}, executor);  // null pointers are fine
}

TEST(Attend, gives_duplicates_identical_bits) {
  CpuExecutor executor(2);
  AttendCase c(spec_of(DType::kBF16, 5, 1, 64), 16, std::vector<Sequence>(128, {1, 96, 6}));
  const int64_t row_bytes = 5 * 64 * 2;
  for (int64_t r = 1; r < c.q_rows; ++r)
    std::copy_n(c.q.begin(), row_bytes, c.q.begin() + r * row_bytes);
  const Output output = attend_case(c, c.plan(cpu_profile(2)), executor);
  for (int64_t r = 1; r < c.q_rows; ++r) {
    EXPECT_EQ(std::memcmp(output.out.data(), output.out.data() + r * row_bytes, row_bytes), 0);
  }
}

TEST(Attend, computes_a_batch_of_65536_sequences) {
  CpuExecutor executor(2);
  const AttendCase c(spec_of(DType::kF32, 1, 1, 8), 4, std::vector<Sequence>(65536, {1, 5, 1}));
  const Output output = attend_case(c, c.plan(cpu_profile(2)), executor);
  const std::vector<int32_t> some{0, 1, 32767, 32768, 65534, 65535};
  EXPECT_TRUE(
      check_result(c.problem(), {output.out.data(), 0, 0}, output.lse.data(), some).passed());
  for (const float lse : output.lse) ASSERT_FALSE(std::isnan(lse));
}

TEST(CpuExecutor, refuses_silly_thread_counts_and_counts_the_rest) {
  EXPECT_THROW(CpuExecutor(-1), Error);
  EXPECT_THROW(CpuExecutor(1'000'000), Error);
  EXPECT_EQ(CpuExecutor(3).threads(), 3);
  EXPECT_EQ(CpuExecutor().threads(), usable_cpus());
}

TEST(ThreadPool, runs_every_piece_once_over_many_jobs) {
  ThreadPool pool(4);
  struct Job {
    std::atomic<int> next{0};
    std::array<std::atomic<int>, 100> done{};
  };
  for (int round = 0; round < 2000; ++round) {
    Job job;
    pool.run(
        1 + round % 4,
        [](void* context, int) {
          Job& j = *static_cast<Job*>(context);
          for (int i; (i = j.next.fetch_add(1)) < 100;) j.done[i].fetch_add(1);
        },
        &job);
    for (const auto& done : job.done) ASSERT_EQ(done.load(), 1);
  }
}

TEST(CpuProfile, is_constant_and_names_the_kernels) {
  const DeviceProfile a = cpu_profile(2);
  const DeviceProfile b = cpu_profile(2);
  EXPECT_TRUE(same_bits(std::span(&a, 1), std::span(&b, 1)));
  EXPECT_EQ(a.workers, 2);
  EXPECT_NE(std::string(a.name.data()).find(cpu_simd_name()), std::string::npos);
  EXPECT_EQ(cpu_profile().workers, usable_cpus());
}

TEST(CpuProfile, measures_positive_rates) {
  const DeviceProfile p = measure_cpu_profile(1);
  EXPECT_GT(p.dram_bytes_per_us, 0);
  EXPECT_GT(p.cache_bytes_per_us, 0);
  for (const KernelRate& rate : p.rates) EXPECT_GT(rate.peak_flops_per_us, 0);
  for (const KernelRate& rate : p.rates) {
    EXPECT_GT(rate.narrow_ns, 0);
    EXPECT_GT(rate.wide_ns, 0);
    EXPECT_GE(rate.convert_ns, 0);
    EXPECT_GE(rate.softmax_ns, 0);
  }
}

}  // namespace
}  // namespace pando::testing
