// A call captured once and replayed for other plans: other lengths, other forests, other batches.
#include <algorithm>
#include <cstring>

#include "cases/device_case.h"
#include "cuda/device_test.h"
#include "support/message_of.h"

namespace pando::cases {
namespace {

using pando::testing::message_of;

/// The batches of a serving loop in one KV pool, and device memory with room for each of them.
class CudaGraph : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    ForestShape no_kv;
    for (int s = 0; s < 5; ++s) no_kv.add_sequence(-1);
    ForestShape duplicates;
    duplicates.add_node(-1, 777);
    for (int s = 0; s < 70; ++s) duplicates.add_sequence(0);
    for (const ForestShape& shape :
         {prefix_shape(8, 512, 64), prefix_shape(8, 528, 93), tree_shape({1, 3, 30}, {900, 70, 5}),
          prefix_shape(1, 0, 1), prefix_shape(48, 0, 257), no_kv, duplicates,
          prefix_shape(8, 512, 64, 3)}) {
      batches_.push_back(device_case(shape));
    }
    const auto largest =
        std::ranges::max_element(batches_, {}, [](const Case& c) { return c.tables.num_pages; });
    // Without spare pages, which would hold NaN where the batches have tokens.
    pool_ = device_case(prefix_shape(1, 0, 16 * static_cast<int>(largest->tables.num_pages)), 16,
                        KvOrder::kHnd, 0);
    int64_t rows = 0;
    for (Case& batch : batches_) {
      batch.tables.num_pages = pool_.tables.num_pages;
      batch.k = pool_.k.share();
      batch.v = pool_.v.share();
      rows = std::max<int64_t>(rows, batch.tables.q_rows());
      page_ids_ = std::max(page_ids_, batch.tables.page_ids.size());
      Plan& plan = plans_.emplace_back();
      runner_.planner(0).plan(discover(batch.tables.batch()), batch.attention(), {}, plan);
      schedule_bytes_ = std::max(schedule_bytes_, plan.schedule().size());
      workspace_bytes_ = std::max<size_t>(workspace_bytes_, plan.workspace_bytes());
    }
    k_ = DeviceBuffer(pool_.k.span());
    v_ = DeviceBuffer(pool_.v.span());
    q_ = DeviceBuffer(rows * kRowBytes);
    out_ = DeviceBuffer(rows * kRowBytes);
    lse_ = DeviceBuffer(rows * 8 * sizeof(float));
    ids_ = DeviceBuffer(page_ids_ * sizeof(int32_t));
    workspace_ = DeviceBuffer(workspace_bytes_);
  }

  AttendArgs args() const {
    AttendArgs a;
    a.q = {q_.data(), 0, 0};
    a.k = k_.data();
    a.v = v_.data();
    a.kv = pool_.kv();
    a.page_ids = {reinterpret_cast<const int32_t*>(ids_.data()), page_ids_};
    a.out = {out_.data(), 0, 0};
    a.lse = reinterpret_cast<float*>(lse_.data());
    a.workspace = {workspace_.data(), workspace_bytes_};
    return a;
  }

  /// Puts batch `i` into the device's memory and poisons all that attend writes.
  void set(size_t i) {
    const Case& batch = batches_[i];
    q_.upload(batch.q.span(), 0);
    ids_.upload(std::as_bytes(std::span(batch.tables.page_ids)), 0);
    for (DeviceBuffer* buffer : {&out_, &lse_, &workspace_}) buffer->fill(kPoison);
  }

  /// Compares what lies in out and lse with a call of its own, bit by bit, and with the oracle.
  void expect_result(size_t i) {
    const Case& batch = batches_[i];
    Output got;
    got.head_stride = 128;
    got.row_stride = 8 * 128;
    got.out = Buffer(batch.tables.q_rows() * kRowBytes);
    out_.download(got.out.span());
    got.lse.resize(batch.tables.q_rows() * 8);
    lse_.download(std::as_writable_bytes(std::span(got.lse)));
    EXPECT_TRUE(same_bits(batch, got, runner_.attend(batch, {}))) << "batch " << i;
    const CheckResult result = Reference(batch).check(got);
    EXPECT_TRUE(result.passed()) << "batch " << i << ": out " << result.got.max_err_out << " of "
                                 << result.allowed.out << ", lse " << result.got.max_err_lse
                                 << " of " << result.allowed.lse;
  }

  DeviceGraph captured_with_upload(CudaPlan& plan) {
    const DeviceStream& stream = runner_.cuda().stream;
    return DeviceGraph(stream, [&] {
      plan.upload(stream.get());
      attend(plan, args(), runner_.cuda().executor, stream.get());
    });
  }

  static constexpr int64_t kRowBytes = 8 * 128 * 2;
  Runner runner_{0, Backend::kCuda};
  std::vector<Case> batches_;
  std::vector<Plan> plans_;
  Case pool_;
  size_t page_ids_ = 0, schedule_bytes_ = 0, workspace_bytes_ = 0;
  DeviceBuffer k_, v_, q_, out_, lse_, ids_, workspace_;
};

TEST_F(CudaGraph, with_the_upload_is_replayed_for_other_plans) {
  const DeviceStream& stream = runner_.cuda().stream;
  CudaPlan plan(runner_.cuda().executor, static_cast<int64_t>(schedule_bytes_));
  plan.assign(plans_[0]);
  const DeviceGraph graph = captured_with_upload(plan);
  for (const size_t i : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u, 0u, 4u}) {
    set(i);
    plan.assign(plans_[i]);
    graph.launch(stream);
    stream.synchronize();
    expect_result(i);
  }
}

TEST_F(CudaGraph, of_layers_is_replayed_after_one_upload) {
  const DeviceStream& stream = runner_.cuda().stream;
  CudaPlan plan(runner_.cuda().executor, static_cast<int64_t>(schedule_bytes_));
  plan.assign(plans_[3]);
  plan.upload(stream.get());
  const DeviceGraph graph(stream, [&] {
    for (int layer = 0; layer < 4; ++layer) {
      attend(plan, args(), runner_.cuda().executor, stream.get());
    }
  });
  for (size_t i = 0; i < batches_.size(); ++i) {
    set(i);
    plan.assign(plans_[i]);
    plan.upload(stream.get());
    graph.launch(stream);
    stream.synchronize();
    expect_result(i);
  }
}

TEST_F(CudaGraph, assign_refuses_what_the_captured_call_has_no_room_for) {
  const DeviceStream& stream = runner_.cuda().stream;
  CudaPlan plan(runner_.cuda().executor, static_cast<int64_t>(schedule_bytes_));
  plan.assign(plans_[3]);
  plan.upload(stream.get());
  AttendArgs tight = args();
  tight.workspace = tight.workspace.first(plans_[3].workspace_bytes());
  tight.page_ids = tight.page_ids.first(batches_[3].tables.page_ids.size());
  const DeviceGraph graph(stream,
                          [&] { attend(plan, tight, runner_.cuda().executor, stream.get()); });
  const std::string message =
      message_of(ErrorCode::kInvalidArgument, [&] { plan.assign(plans_[4]); });
  EXPECT_NE(message.find("captured"), std::string::npos) << message;
  Case other = device_case(prefix_shape(1, 0, 1));
  other.spec.q_heads = 4;
  Plan other_heads;
  runner_.planner(0).plan(discover(other.tables.batch()), other.attention(), {}, other_heads);
  EXPECT_NE(
      message_of(ErrorCode::kTypeMismatch, [&] { plan.assign(other_heads); }).find("heads 4/2"),
      std::string::npos);
  other.spec.q_heads = 8;
  other.spec.kv_dtype = DType::kE4M3;
  Plan on_fp8;
  runner_.planner(0).plan(discover(other.tables.batch()), other.attention(), {}, on_fp8);
  EXPECT_NE(message_of(ErrorCode::kTypeMismatch, [&] { plan.assign(on_fp8); }).find("KV of fp8"),
            std::string::npos);
  set(3);
  plan.assign(plans_[3]);
  plan.upload(stream.get());
  graph.launch(stream);
  stream.synchronize();
  expect_result(3);
}

TEST_F(CudaGraph, assign_refuses_another_scoring_than_the_captured_one) {
  const DeviceStream& stream = runner_.cuda().stream;
  CudaPlan plan(runner_.cuda().executor, static_cast<int64_t>(schedule_bytes_));
  plan.assign(plans_[0]);
  const DeviceGraph graph = captured_with_upload(plan);
  const auto refusal = [&](float scale, float soft_cap) {
    AttentionSpec spec = batches_[0].attention();
    spec.scale = scale;
    spec.soft_cap = soft_cap;
    Plan other;
    runner_.planner(0).plan(discover(batches_[0].tables.batch()), spec, {}, other);
    return message_of(ErrorCode::kTypeMismatch, [&] { plan.assign(other); });
  };
  const float scale = plans_[0].header().scale;
  const std::string capped = refusal(scale, 30);
  EXPECT_NE(capped.find("soft_cap 30"), std::string::npos) << capped;
  EXPECT_NE(capped.find("soft_cap 0"), std::string::npos) << capped;
  const std::string scaled = refusal(2 * scale, 0);
  EXPECT_NE(scaled.find("scale"), std::string::npos) << scaled;
  // The graph still runs the plan of before.
  set(0);
  graph.launch(stream);
  stream.synchronize();
  expect_result(0);
}

TEST_F(CudaGraph, host_plans_are_not_captured) {
  const DeviceStream& stream = runner_.cuda().stream;
  set(0);
  const std::string message = message_of(ErrorCode::kInvalidArgument, [&] {
    const DeviceGraph graph(
        stream, [&] { attend(plans_[0], args(), runner_.cuda().executor, stream.get()); });
  });
  EXPECT_NE(message.find("capturing"), std::string::npos) << message;
}

}  // namespace
}  // namespace pando::cases
