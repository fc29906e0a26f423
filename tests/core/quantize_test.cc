// Quantising K and V to fp8: scales, rounding, what is lost, and refusals.
#include "pando/quantize.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/convert.h"
#include "support/message_of.h"

namespace pando {
namespace {

using testing::message_of;

constexpr int64_t kPages = 3;
constexpr int32_t kTokens = 4, kHeads = 2, kDim = 8;

/// Normal numbers whose second head is 10 times as large, as [pages, heads, tokens, dim].
struct Kv {
  KvLayout layout = KvLayout::hnd(kPages, kTokens, kHeads, kDim);
  std::vector<float> values = std::vector<float>(kPages * kTokens * kHeads * kDim);
  std::vector<uint8_t> codes = std::vector<uint8_t>(values.size());

  Kv() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < values.size(); ++i) values[i] = normal(random) * (head_of(i) ? 10 : 1);
  }
  static int32_t head_of(size_t i) { return static_cast<int32_t>(i / (kTokens * kDim) % kHeads); }
  float largest(int32_t head) const {
    float most = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (head < 0 || head_of(i) == head) most = std::max(most, std::fabs(values[i]));
    }
    return most;
  }
  QuantizeError quantize(std::span<const float> scales) {
    return quantize_fp8(values.data(), DType::kF32, layout, scales, codes.data(), layout);
  }
};

TEST(Fp8Scales, take_the_largest_number_to_the_largest_fp8) {
  const Kv kv;
  std::vector<float> one(1), each(kHeads);
  fp8_scales(kv.values.data(), DType::kF32, kv.layout, one);
  EXPECT_EQ(one[0], kv.largest(-1) / 448);
  fp8_scales(kv.values.data(), DType::kF32, kv.layout, each);
  EXPECT_EQ(each[0], kv.largest(0) / 448);
  EXPECT_EQ(each[1], kv.largest(1) / 448);
}

TEST(Fp8Scales, are_1_without_numbers_and_pass_over_what_is_not_finite) {
  Kv kv;
  std::vector<float> each(kHeads);
  std::vector<float> zeros(kv.values.size(), 0.0f);
  fp8_scales(zeros.data(), DType::kF32, kv.layout, each);
  EXPECT_EQ(each, std::vector<float>(kHeads, 1.0f));
  const float largest = kv.largest(1);
  kv.values[0] = std::numeric_limits<float>::quiet_NaN();
  kv.values[kTokens * kDim] = -std::numeric_limits<float>::infinity();
  fp8_scales(kv.values.data(), DType::kF32, kv.layout, each);
  EXPECT_EQ(each[1], largest / 448);
}

TEST(QuantizeFp8, rounds_to_the_nearest_and_tells_what_that_lost) {
  Kv kv;
  std::vector<float> scales(kHeads);
  fp8_scales(kv.values.data(), DType::kF32, kv.layout, scales);
  const QuantizeError error = kv.quantize(scales);
  double most = 0, squares = 0, all = 0;
  for (size_t i = 0; i < kv.values.size(); ++i) {
    const float scale = scales[Kv::head_of(i)];
    EXPECT_EQ(kv.codes[i], float_to_e4m3(kv.values[i] / scale));
    const double lost = double{scale} * e4m3_to_float(kv.codes[i]) - kv.values[i];
    // Half a step: 2^-4 of the number, or of the least normal one.
    EXPECT_LE(std::fabs(lost),
              1.0001 * 0x1p-4 * std::max(std::fabs(kv.values[i]), 0x1p-6f * scale));
    most = std::max(most, std::fabs(lost));
    squares += lost * lost;
    all += double{kv.values[i]} * kv.values[i];
  }
  const auto count = static_cast<double>(kv.values.size());
  EXPECT_EQ(error.elements, static_cast<int64_t>(kv.values.size()));
  EXPECT_EQ(error.saturated, 0);
  EXPECT_EQ(error.not_finite, 0);
  EXPECT_DOUBLE_EQ(error.max_abs, most);
  EXPECT_DOUBLE_EQ(error.rms, std::sqrt(squares / count));
  EXPECT_DOUBLE_EQ(error.rms_element, std::sqrt(all / count));
}

TEST(QuantizeFp8, saturates_and_counts_what_is_no_number) {
  Kv kv;
  for (float& value : kv.values) value = 1;
  kv.values[1] = 463;
  kv.values[2] = 465;
  kv.values[3] = -1e30f;
  kv.values[4] = std::numeric_limits<float>::quiet_NaN();
  kv.values[5] = std::numeric_limits<float>::infinity();
  const QuantizeError error = kv.quantize(std::vector<float>{1.0f});
  EXPECT_EQ(kv.codes[0], 0x38);
  EXPECT_EQ(kv.codes[1], 0x7e);
  EXPECT_EQ(kv.codes[2], 0x7e);
  EXPECT_EQ(kv.codes[3], 0xfe);
  EXPECT_EQ(kv.codes[4], 0x7f);
  EXPECT_EQ(kv.codes[5], 0x7e);
  EXPECT_EQ(error.saturated, 2);
  EXPECT_EQ(error.not_finite, 2);
  EXPECT_NEAR(error.max_abs, 1e30, 1e24);
}

TEST(QuantizeFp8, reads_every_dtype_and_writes_any_layout) {
  Kv kv;
  const std::vector<float> scales{0.5f};
  const KvLayout nhd = KvLayout::nhd(kPages, kTokens, kHeads, kDim);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    std::vector<std::byte> from(kv.values.size() * dtype_bytes(dtype));
    for (size_t i = 0; i < kv.values.size(); ++i) {
      store_element(from.data(), static_cast<int64_t>(i), dtype, kv.values[i]);
    }
    std::vector<uint8_t> to(kv.codes.size());
    quantize_fp8(from.data(), dtype, kv.layout, scales, to.data(), nhd);
    for (int64_t page = 0; page < kPages; ++page) {
      for (int32_t head = 0; head < kHeads; ++head) {
        for (int32_t token = 0; token < kTokens; ++token) {
          const int64_t at = kv.layout.offset(page, head, token);
          EXPECT_EQ(to[nhd.offset(page, head, token)],
                    float_to_e4m3(load_element(from.data(), at, dtype) / 0.5f));
        }
      }
    }
  }
}

TEST(QuantizeFp8, refuses_by_name) {
  Kv kv;
  EXPECT_EQ(
      message_of(ErrorCode::kInvalidArgument, [&] { kv.quantize(std::vector<float>(3, 1.0f)); }),
      "scales: got 3, want 1, or 2 for as many kv heads");
  EXPECT_EQ(message_of(ErrorCode::kInvalidArgument, [&] { kv.quantize({}); }),
            "scales: got 0, want 1, or 2 for as many kv heads");
  for (const float wrong : {0.0f, -1.0f, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(message_of(ErrorCode::kInvalidArgument,
                         [&] {
                           kv.quantize(std::vector<float>{1, wrong});
                         }),
              fmt::format("scales[1]: got {}, want a finite positive number", wrong));
  }
  std::vector<float> scales(1, 1.0f);
  EXPECT_EQ(message_of(ErrorCode::kInvalidArgument,
                       [&] { fp8_scales(kv.codes.data(), DType::kE4M3, kv.layout, scales); }),
            "dtype: got fp8, want fp32, bf16 or fp16");
  EXPECT_EQ(message_of(ErrorCode::kInvalidArgument,
                       [&] { fp8_scales(nullptr, DType::kF32, kv.layout, scales); }),
            "from: got a null pointer, want memory of the host");
  const KvLayout other = KvLayout::hnd(kPages, kTokens, kHeads, kDim + 8);
  EXPECT_EQ(message_of(ErrorCode::kInvalidArgument,
                       [&] {
                         quantize_fp8(kv.values.data(), DType::kF32, kv.layout, scales,
                                      kv.codes.data(), other);
                       }),
            "to_layout: got 3 pages of 4 tokens x 2 heads x 16, want 3 x 4 x 2 x 8, as layout");
}

}  // namespace
}  // namespace pando
