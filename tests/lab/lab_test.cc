// The lab's kernels against the oracle. Built twice: for a GPU, and for the emulation of one.
#include "lab/lab.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "lab/lab_case.h"
#include "lab_device.h"
#include "support/message_of.h"

namespace pando::lab {
namespace {

using pando::testing::message_of;

class Lab : public LabTest {
 protected:
  static LabOutput run(const Kernel& kernel, const LabCase& problem) {
    const LabMemory<DeviceBuffer> memory(problem);
    kernel.attend(memory.batch(), nullptr);
    return memory.download();
  }

  static void expect_correct(const Kernel& kernel, const LabCase& problem, const LabOutput& got) {
    const CheckResult result =
        check_result(problem.problem(), {got.out.data(), 0, 0}, got.lse.data());
    EXPECT_TRUE(result.passed()) << kernel.name << ": error " << result.got.max_err_out
                                 << ", allowed " << result.allowed.out << "; lse "
                                 << result.got.max_err_lse << ", allowed " << result.allowed.lse;
    EXPECT_TRUE(problem.kept_inside(got)) << kernel.name;
  }

  static void expect_all_correct(const Shape& shape, float magnitude = 1) {
    SCOPED_TRACE(::testing::Message()
                 << shape.suffix_tokens.size() << " sequences, group " << shape.group << ", "
                 << shape.kv_heads << " kv heads, prefix " << shape.prefix_tokens);
    const LabCase problem(shape, 1 + shape.prefix_tokens, magnitude);
    for (const Kernel& kernel : kKernels) expect_correct(kernel, problem, run(kernel, problem));
  }

  /// `count` suffixes of lengths around a tile, the first of them of length `first`.
  static std::vector<int32_t> suffixes(int32_t count, int32_t first) {
    const int32_t lengths[] = {first, 1, 0, 63, 64, 65, 17};
    std::vector<int32_t> tokens(count);
    for (int32_t b = 0; b < count; ++b) tokens[b] = lengths[b % std::size(lengths)];
    return tokens;
  }
};

TEST_F(Lab, prefixes_around_every_tile_agree_with_the_oracle) {
  for (const int32_t prefix : {1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, 321}) {
    expect_all_correct({4, 1, prefix, suffixes(5, 2)});
  }
}

TEST_F(Lab, batches_and_groups_around_every_block_agree_with_the_oracle) {
  for (const int32_t group : {1, 4, 8}) {
    for (const int32_t sequences : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17}) {
      expect_all_correct({group, 1, 65, suffixes(sequences, 5)});
    }
  }
}

TEST_F(Lab, unusual_groups_agree_with_the_oracle) {
  for (const int32_t group : {3, 16, 17, 33}) expect_all_correct({group, 1, 70, suffixes(3, 66)});
}

TEST_F(Lab, many_kv_heads_agree_with_the_oracle) {
  expect_all_correct({2, 5, 130, suffixes(4, 3)});
}

TEST_F(Lab, a_prefix_and_no_suffix_is_the_whole_context) {
  expect_all_correct({4, 2, 200, {0, 0, 0}});
}

TEST_F(Lab, large_scores_agree_with_the_oracle) {
  expect_all_correct({4, 1, 129, suffixes(5, 70)}, 30);
}

TEST_F(Lab, no_prefix_is_computed_or_refused) {
  const LabCase problem({2, 2, 0, {70, 0, 1}}, 1);
  for (const Kernel& kernel : kKernels) {
    if (kernel.attend == tma_ring) {
      EXPECT_EQ(message_of(ErrorCode::kUnsupported, [&] { run(kernel, problem); }),
                "prefix_tokens: got 0, 04_tma_ring wants at least 1: a tensor map cannot be empty");
    } else {
      const LabOutput got = run(kernel, problem);
      expect_correct(kernel, problem, got);
      for (const int32_t empty : {4, 5, 6, 7}) {  // the rows of the second sequence
        EXPECT_EQ(got.lse[empty], -INFINITY);
        EXPECT_EQ(got.out[empty * kHeadDim], 0);
      }
    }
  }
}

TEST_F(Lab, repeated_runs_give_the_same_bits) {
  const LabCase problem({4, 2, 321, suffixes(9, 100)}, 2);
  for (const Kernel& kernel : kKernels) {
    const LabOutput first = run(kernel, problem);
    for (int i = 0; i < 3; ++i) {
      const LabOutput again = run(kernel, problem);
      EXPECT_EQ(first.out, again.out) << kernel.name;
      EXPECT_EQ(std::memcmp(first.lse.data(), again.lse.data(), first.lse.size() * sizeof(float)),
                0)
          << kernel.name;
    }
  }
}

// Refused on the host, before anything is enqueued: these run without a GPU, too.

/// Sizes and pointers that pass every check.
Batch good_batch() {
  alignas(16) static std::byte memory[16];
  Batch batch;
  batch.sequences = 1;
  batch.q_heads = 2;
  batch.kv_heads = 1;
  batch.prefix_tokens = 3;
  batch.longest_suffix = 1;
  batch.q = batch.prefix_k = batch.prefix_v = batch.suffix_k = batch.suffix_v =
      reinterpret_cast<const Element*>(memory);
  batch.suffix_begin = reinterpret_cast<const int32_t*>(memory);
  batch.out = reinterpret_cast<Element*>(memory);
  batch.lse = batch.partial_o = batch.partial_lse = reinterpret_cast<float*>(memory);
  return batch;
}

std::string refused(ErrorCode code, void (*spoil)(Batch&)) {
  Batch batch = good_batch();
  spoil(batch);
  std::string first;
  for (const Kernel& kernel : kKernels) {
    const std::string message = message_of(code, [&] { kernel.attend(batch, nullptr); });
    if (first.empty()) first = message;
    EXPECT_EQ(message, first) << kernel.name;
  }
  return first;
}

TEST(LabErrors, what_no_kernel_supports_is_named) {
  constexpr auto kUnsupported = ErrorCode::kUnsupported;
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  EXPECT_EQ(refused(kUnsupported, [](Batch& b) { b.head_dim = 64; }),
            "head_dim: got 64, the lab's kernels are for 128");
  EXPECT_EQ(refused(kInvalid, [](Batch& b) { b.sequences = 0; }),
            "sequences: got 0, want at least 1");
  EXPECT_EQ(refused(kInvalid, [](Batch& b) { b.kv_heads = 0; }),
            "kv_heads: got 0, want at least 1");
  EXPECT_EQ(refused(kInvalid, [](Batch& b) { b.kv_heads = 3; }),
            "q_heads: got 2, want a multiple of the 3 kv_heads");
  EXPECT_EQ(refused(kInvalid, [](Batch& b) { b.prefix_tokens = -1; }),
            "prefix_tokens: got -1, want at least 0");
  EXPECT_EQ(refused(kInvalid, [](Batch& b) { b.longest_suffix = -1; }),
            "longest_suffix: got -1, want at least 0");
  EXPECT_EQ(refused(kUnsupported, [](Batch& b) { b.q_heads = b.kv_heads = 65536; }),
            "kv_heads: got 65536, a grid has at most 65535 thread blocks along y");
  EXPECT_EQ(refused(kUnsupported, [](Batch& b) { b.sequences = 1 << 30; }),
            "sequences: got 1073741824 with 2 q_heads, want at most 2147483647 rows");
  EXPECT_EQ(refused(kInvalid, [](Batch& b) { b.q = nullptr; }),
            "q: got a null pointer, want device memory");
  EXPECT_EQ(refused(kInvalid, [](Batch& b) { b.partial_o += 1; }),
            "partial_o: got an address that is 4 modulo 16, want a multiple of 16");
}

TEST(LabErrors, a_context_that_exceeds_shared_memory_is_named) {
  Batch batch = good_batch();
  batch.prefix_tokens = 57856;
  EXPECT_EQ(message_of(ErrorCode::kUnsupported, [&] { naive(batch, nullptr); }),
            "prefix_tokens + longest_suffix: got 57857, 01_naive wants at most 57856 tokens: their "
            "scores lie in shared memory");
}

}  // namespace
}  // namespace pando::lab
