// What of the CUDA backend can be asked and refused on any machine, with or without CUDA or a GPU.
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "pando/cuda.h"
#include "pando/error.h"
#include "pando/forest.h"
#include "plan/check_args.h"
#include "support/message_of.h"

namespace pando {
namespace {

using testing::message_of;

TEST(CudaDevices, asking_never_throws_and_gives_a_reason) {
  EXPECT_GE(cuda_device_count(), 0);
  if (cuda_device_count() == 0) {
    EXPECT_NE(cuda_unavailable(), "");
    EXPECT_NE(
        message_of(ErrorCode::kUnsupported, [] { CudaExecutor executor; }).find(cuda_unavailable()),
        std::string::npos);
    message_of(ErrorCode::kUnsupported, [] { cuda_profile(); });
    message_of(ErrorCode::kUnsupported, [] { cuda_device_info(); });
  }
}

TEST(CudaDevices, a_number_that_no_device_has_is_refused) {
  EXPECT_NE(cuda_unavailable(-1), "");
  EXPECT_NE(cuda_unavailable(1000), "");
}

/// A plan for an H100 and arguments for it that hold, except that nothing lies on a device.
class CudaCheckArgs : public ::testing::Test {
 protected:
  CudaCheckArgs() {
    const std::vector<int32_t> q_indptr = {0, 1, 2}, kv_len = {40, 70}, page_indptr = {0, 3, 8};
    const Forest forest = discover({q_indptr, kv_len, page_indptr, page_ids_, 16});
    plan_ = plan(forest, spec_, h100_profile());
    workspace_.resize(plan_.workspace_bytes() + 64);
    args_.q = {address(1), 0, 0};
    args_.k = address(2);
    args_.v = address(3);
    args_.kv = KvLayout::hnd(8, 16, 2, 128);
    args_.page_ids = page_ids_;
    args_.out = {address(4), 0, 0};
    args_.lse = static_cast<float*>(address(5));
    args_.workspace = {static_cast<std::byte*>(address(6)), workspace_.size()};
  }

  /// Never read: only its alignment counts.
  static void* address(uintptr_t page) { return reinterpret_cast<void*>(page << 20); }
  static void* beside(const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(pointer) + bytes);
  }

  template <class Spoil>
  std::string refusal(Spoil&& spoil) {
    AttendArgs args = args_;
    spoil(args);
    return message_of(ErrorCode::kInvalidArgument,
                      [&] { check_args(plan_, args, Backend::kCuda); });
  }
  void expect_refused(const std::string& want, const std::function<void(AttendArgs&)>& spoil) {
    const std::string message = refusal(spoil);
    EXPECT_EQ(message.substr(0, want.size()), want) << message;
  }

  const AttentionSpec spec_{.q_heads = 8, .kv_heads = 2, .head_dim = 128};
  std::vector<int32_t> page_ids_ = {0, 1, 2, 0, 1, 5, 6, 7};
  Plan plan_;
  std::vector<std::byte> workspace_;
  AttendArgs args_;
};

TEST_F(CudaCheckArgs, valid_arguments_pass) { check_args(plan_, args_, Backend::kCuda); }

TEST_F(CudaCheckArgs, a_plan_for_the_cpu_is_another_type) {
  const std::string message =
      message_of(ErrorCode::kTypeMismatch, [&] { check_args(plan_, args_, Backend::kCpu); });
  EXPECT_NE(message.find("got one made for CUDA"), std::string::npos) << message;
}

TEST_F(CudaCheckArgs, an_empty_plan_is_refused) {
  message_of(ErrorCode::kInvalidArgument, [&] { check_args(Plan(), args_, Backend::kCuda); });
}

TEST_F(CudaCheckArgs, null_pointers_are_refused) {
  expect_refused("q: got a null", [](AttendArgs& a) { a.q.data = nullptr; });
  expect_refused("k: got a null", [](AttendArgs& a) { a.k = nullptr; });
  expect_refused("v: got a null", [](AttendArgs& a) { a.v = nullptr; });
  expect_refused("out: got a null", [](AttendArgs& a) { a.out.data = nullptr; });
  AttendArgs no_lse = args_;
  no_lse.lse = nullptr;
  check_args(plan_, no_lse, Backend::kCuda);
}

TEST_F(CudaCheckArgs, addresses_are_aligned_for_tma) {
  expect_refused("q: got address", [](AttendArgs& a) { a.q.data = beside(a.q.data, 8); });
  expect_refused("k: got address", [](AttendArgs& a) { a.k = beside(a.k, 2); });
  expect_refused("v: got address", [](AttendArgs& a) { a.v = beside(a.v, 8); });
  expect_refused("out: got address", [](AttendArgs& a) { a.out.data = beside(a.out.data, 4); });
  expect_refused("lse: got address",
                 [](AttendArgs& a) { a.lse = static_cast<float*>(beside(a.lse, 2)); });
}

TEST_F(CudaCheckArgs, strides_are_multiples_of_eight) {
  expect_refused("q.head_stride: got 132",
                 [](AttendArgs& a) { a.q.head_stride = 132, a.q.row_stride = 8 * 136; });
  expect_refused("out.row_stride: got 1028",
                 [](AttendArgs& a) { a.out.head_stride = 128, a.out.row_stride = 1028; });
  expect_refused("kv.token_stride: got 132", [](AttendArgs& a) {
    a.kv.token_stride = 132, a.kv.head_stride = 16 * 136, a.kv.page_stride = 32 * 136;
  });
  expect_refused("kv.page_stride: got 1099511627776",
                 [](AttendArgs& a) { a.kv.page_stride = int64_t{1} << 40; });
  expect_refused("kv.page_stride: got 34359738376 elements for 8 pages and a head_stride of 2048",
                 [](AttendArgs& a) { a.kv.page_stride = (int64_t{1} << 35) + 8; });
}

TEST_F(CudaCheckArgs, layouts_must_be_those_of_the_plan) {
  expect_refused("kv.page_tokens: got 32", [](AttendArgs& a) { a.kv.page_tokens = 32; });
  expect_refused("kv.kv_heads: got 1", [](AttendArgs& a) { a.kv.kv_heads = 1; });
  expect_refused("kv.head_dim: got 64", [](AttendArgs& a) { a.kv.head_dim = 64; });
  expect_refused("kv.num_pages: got 7", [](AttendArgs& a) { a.kv.num_pages = 7; });
  expect_refused("page_ids: got 7", [](AttendArgs& a) { a.page_ids = a.page_ids.first(7); });
  expect_refused("q.head_stride: got 64",
                 [](AttendArgs& a) { a.q.head_stride = 64, a.q.row_stride = 1024; });
}

TEST_F(CudaCheckArgs, a_short_workspace_is_refused) {
  // A sequence so long that it is split, which takes partials: one page, over and over.
  page_ids_.assign(2048, 0);
  args_.page_ids = page_ids_;
  const std::vector<int32_t> q_indptr = {0, 1}, kv_len = {2048 * 16}, page_indptr = {0, 2048};
  plan_ = plan(discover({q_indptr, kv_len, page_indptr, page_ids_, 16}), spec_, h100_profile());
  ASSERT_GT(plan_.workspace_bytes(), 0);
  workspace_.resize(plan_.workspace_bytes());
  args_.workspace = {static_cast<std::byte*>(address(6)), workspace_.size()};
  check_args(plan_, args_, Backend::kCuda);
  const auto short_by_one = static_cast<size_t>(plan_.workspace_bytes()) - 1;
  expect_refused("workspace: got",
                 [&](AttendArgs& a) { a.workspace = a.workspace.first(short_by_one); });
}

}  // namespace
}  // namespace pando
