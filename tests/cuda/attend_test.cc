// attend on a CUDA device: layouts, pages, outputs, and the same bits every time.
#include <cuda_runtime_api.h>

#include <cmath>

#include "cases/device_case.h"
#include "cases/suites.h"
#include "core/convert.h"
#include "cuda/device_test.h"
#include "cuda/invariance.h"
#include "cuda/variant_cases.h"
#include "plan/cuda_shapes.h"
#include "plan/schedule_reader.h"

namespace pando::cases {
namespace {

class CudaAttend : public DeviceTest {
 protected:
  void expect_correct(const Case& problem, const RunOptions& options = {}) {
    const Output output = runner_.attend(problem, options);
    EXPECT_EQ(output.overrun, "");
    const CheckResult result = Reference(problem).check(output);
    EXPECT_TRUE(result.passed()) << "error " << result.got.max_err_out << ", allowed "
                                 << result.allowed.out << "; lse " << result.got.max_err_lse
                                 << ", allowed " << result.allowed.lse;
  }

  Runner runner_{0, Backend::kCuda};
};

TEST_F(CudaAttend, every_shape_page_size_and_layout_agrees_with_the_oracle) {
  for_each_cuda_shape(tree_shape({1, 4, 16}, {300, 70, 33}), {},
                      [&](const Case& problem) { expect_correct(problem); });
}

TEST_F(CudaAttend, fp8_of_every_shape_page_size_and_layout_agrees_with_the_oracle) {
  for_each_cuda_shape(tree_shape({1, 4, 16}, {300, 70, 33}), DType::kE4M3,
                      [&](const Case& problem) { expect_correct(problem); });
}

TEST_F(CudaAttend, every_code_of_fp8_is_converted_exactly) {
  expect_exact_fp8([&](const Case& problem) { return runner_.attend(problem, {}); });
}

TEST_F(CudaAttend, lengths_around_every_block_agree_with_the_oracle) {
  ForestShape shape;
  for (const int32_t block : {8, 16, 64, 128, 256}) {
    for (const int32_t tokens : {block - 1, block, block + 1}) {
      shape.add_sequence(shape.add_node(-1, tokens), tokens % 3 + 1);
    }
  }
  for (const int32_t head_dim : kHeadDims) {
    expect_correct(at_head_dim(head_dim, device_case(shape, 64)));
  }
}

/// Lists in two parts, over single blocks of rows and over pairs: in clusters of a launch that has
/// all multiprocessors or some, and, where their number is odd, in none.
TEST_F(CudaAttend, clusters_that_exchange_rows_agree_with_the_oracle) {
  for (const int32_t head_dim : kHeadDims) {
    for (const auto& [sequences, prefix] : {std::pair{13, 900}, {62, 2000}}) {
      for (const int thread_blocks : {0, sequences < 16 ? 4 : 8, 9}) {
        SCOPED_TRACE(::testing::Message() << sequences << " sequences, head_dim " << head_dim
                                          << ", " << thread_blocks << " thread blocks");
        RunOptions options;
        options.threads = thread_blocks;
        expect_correct(at_head_dim(head_dim, device_case(prefix_shape(sequences, prefix, 40))),
                       options);
        const auto decoded = pando::testing::ScheduleReader(runner_.plan()).decoded();
        if (thread_blocks == 0) continue;
        EXPECT_EQ(decoded.exchanges.empty(), thread_blocks == 9);
      }
    }
  }
}

TEST_F(CudaAttend, windows_and_ranges_agree_with_the_oracle) {
  for (const int32_t head_dim : kHeadDims) {
    for (const int32_t window : {1, 7, 8, 9, 130}) {
      Case problem = at_head_dim(head_dim, device_case(prefix_shape(9, 200, 61, 5)));
      problem.spec.window = window;
      fill_unused(problem, Unused::kMixed, true);
      expect_correct(problem);
    }
  }
}

TEST_F(CudaAttend, variants_agree_with_the_oracle) {
  for (const int32_t head_dim : kHeadDims) {
    for (const VariantCase& each : variant_cases(head_dim)) {
      SCOPED_TRACE(::testing::Message() << each.name << ", head_dim " << head_dim);
      expect_correct(each.problem);
      RunOptions options;
      options.plan = {.sharing = Sharing::kAll, .batch_invariant = true, .cut_tokens = 256};
      expect_correct(each.problem, options);
    }
  }
}

TEST_F(CudaAttend, variants_agree_with_the_oracle_on_fp8) {
  for (VariantCase& each : variant_cases(128)) {
    SCOPED_TRACE(each.name);
    each.problem.spec.kv_dtype = DType::kE4M3;
    fill_data(each.problem, {.seed = 3});
    fill_unused(each.problem, Unused::kNan, true);
    expect_correct(each.problem);
    RunOptions options;
    options.plan = {.sharing = Sharing::kAll, .batch_invariant = true, .cut_tokens = 256};
    expect_correct(each.problem, options);
  }
}

TEST_F(CudaAttend, strided_outputs_and_no_lse_are_written_and_nothing_else) {
  for (const int32_t head_dim : kHeadDims) {
    Case problem = device_case(prefix_shape(33, 200, 61));
    problem.spec.head_dim = head_dim;
    problem.q_head_stride = head_dim + 8;
    problem.q_row_stride = 8 * problem.q_head_stride + 16;
    fill_data(problem, {.seed = 5});
    RunOptions options;
    for (const bool strided : {false, true}) {
      for (const bool want_lse : {false, true}) {
        options.strided = strided;
        options.want_lse = want_lse;
        expect_correct(problem, options);
      }
    }
  }
}

TEST_F(CudaAttend, finds_k_and_v_with_gaps_between_tokens_heads_and_pages) {
  for (const int32_t head_dim : kHeadDims) {
    for_each_layout_with_gaps(prefix_shape(33, 200, 61), head_dim,
                              [&](const Case& problem) { expect_correct(problem, {}); });
  }
}

/// Units of several blocks, from whole tiles to split ones and back, many times in a launch.
TEST_F(CudaAttend, whole_and_split_tiles_in_turn_agree_with_the_oracle) {
  for (const int32_t head_dim : kHeadDims) {
    const Case problem = at_head_dim(head_dim, device_case(prefix_shape(150, 1500, 300, 2)));
    for (const int blocks : {2, 17, 0}) {
      RunOptions options;
      options.threads = blocks;
      expect_correct(problem, options);
    }
  }
}

TEST_F(CudaAttend, repeated_runs_give_the_same_bits) {
  for (const int32_t head_dim : kHeadDims) {
    const Case problem =
        at_head_dim(head_dim, device_case(tree_shape({1, 8, 64}, {2048, 512, 128}), 64));
    const Output first = runner_.attend(problem, {});
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(same_bits(problem, first, runner_.attend(problem, {})))
          << "head_dim " << head_dim << ", run " << i;
    }
  }
}

TEST_F(CudaAttend, batch_invariant_bits_do_not_depend_on_the_batch) {
  const Company company;
  for (const CudaShape& shape : kCudaShapes) {
    for (const auto& [q_len, window] : {std::pair{1, 0}, {4, 0}, {70, 0}, {1, 300}, {70, 333}}) {
      SCOPED_TRACE(::testing::Message() << dtype_name(shape.dtype) << " " << shape.head_dim << ", "
                                        << q_len << " rows, window " << window);
      expect_invariant(runner_, company_case(company, q_len, window, shape.dtype, shape.head_dim),
                       company, 17);
    }
  }
}

TEST_F(CudaAttend, batch_invariant_bits_do_not_depend_on_the_batch_with_variants) {
  for (const int32_t head_dim : kHeadDims) {
    Company company;
    const auto expect_same = [&](int32_t q_len) {
      expect_invariant(runner_, company_with_variants(company, q_len, q_len > 1, head_dim), company,
                       17);
    };
    for (const int32_t q_len : {1, 9}) expect_same(q_len);
    // Sequence 0 has one cut: its rows go to out at once, or by way of partials beside others'.
    company.prefix = company.own = 250;
    for (const int32_t q_len : {1, 2}) expect_same(q_len);
  }
}

TEST_F(CudaAttend, batch_invariant_bits_are_the_same_every_time) {
  const Case problem = device_case(tree_shape({1, 8, 64}, {2048, 512, 128}), 64);
  RunOptions options;
  options.plan.batch_invariant = true;
  const Output first = runner_.attend(problem, options);
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(same_bits(problem, first, runner_.attend(problem, options))) << "run " << i;
  }
}

TEST_F(CudaAttend, any_number_of_thread_blocks_agrees_with_the_oracle) {
  for (const int32_t head_dim : kHeadDims) {
    const Case problem = at_head_dim(head_dim, device_case(prefix_shape(40, 500, 61)));
    for (const int blocks : {1, 2, 3, 17, 78, 131}) {
      RunOptions options;
      options.threads = blocks;
      expect_correct(problem, options);
    }
  }
}

TEST_F(CudaAttend, host_plan_form_agrees_with_a_plan_object) {
  const Case problem = device_case(prefix_shape(20, 300, 40));
  const Output want = runner_.attend(problem, {});
  const DeviceCase inputs(problem);
  DeviceBuffer out(want.out.size()), workspace(runner_.plan().workspace_bytes() + 64);
  for (const int repeat : {0, 1, 2}) {
    out.fill(kPoison);
    workspace.fill(kPoison);
    AttendArgs args = inputs.inputs();
    args.out = {out.data(), 0, 0};
    args.workspace = {workspace.data(), workspace.size()};
    const DeviceStream stream;  // another one each time
    attend(runner_.plan(), args, runner_.cuda().executor, repeat == 0 ? nullptr : stream.get());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    Output got;
    got.row_stride = want.row_stride;
    got.head_stride = want.head_stride;
    got.out = Buffer(out.size());
    out.download(got.out.span());
    EXPECT_TRUE(same_bits(problem, want, got));
  }
}

TEST_F(CudaAttend, an_empty_batch_is_nothing_to_do) {
  const Case problem = device_case({});
  runner_.attend(problem, {});
}

TEST_F(CudaAttend, works_while_another_device_is_current) {
  int devices = 0;
  ASSERT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
  if (devices < 2) GTEST_SKIP() << "needs two GPUs, has " << devices;
  const Case problem = device_case(prefix_shape(20, 300, 40));
  const Output want = runner_.attend(problem, {});  // on device 0
  const DeviceCase inputs(problem);
  DeviceRun run(problem, inputs, runner_.plan(), runner_.cuda().executor, false, true);
  const DeviceStream stream;
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  run.upload(stream);
  run.attend(stream);
  stream.synchronize();
  int current = -1;
  ASSERT_EQ(cudaGetDevice(&current), cudaSuccess);
  EXPECT_EQ(current, 1);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_TRUE(same_bits(problem, want, run.download()));
}

}  // namespace
}  // namespace pando::cases
