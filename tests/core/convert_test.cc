// Conversions between fp32 and the 16-bit types, over every bit pattern there is.
#include "core/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace pando {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// One 16-bit format, with its value function written straight from its definition.
struct Format {
  std::string name;
  int mantissa_bits;
  int bias;
  float (*to_float)(uint16_t);
  uint16_t (*from_float)(float);

  uint16_t infinity() const { return static_cast<uint16_t>(0x7fff & ~((1 << mantissa_bits) - 1)); }
  bool is_nan(uint16_t bits) const { return (bits & 0x7fff) > infinity(); }
  /// Value of a pattern; of infinity, the number that would come after the largest finite one.
  double value(uint16_t bits) const {
    const int exponent = (bits & 0x7fff) >> mantissa_bits;
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    const int implicit = exponent == 0 ? 0 : 1 << mantissa_bits;
    const double magnitude =
        std::ldexp(implicit + mantissa, std::max(exponent, 1) - bias - mantissa_bits);
    return bits & 0x8000 ? -magnitude : magnitude;
  }
};

class Convert : public testing::TestWithParam<Format> {};

TEST_P(Convert, every_pattern_has_the_value_of_its_definition) {
  const Format& format = GetParam();
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float got = format.to_float(bits);
    if (format.is_nan(bits)) {
      ASSERT_TRUE(std::isnan(got)) << i;
    } else if ((bits & 0x7fff) == format.infinity()) {
      ASSERT_EQ(got, bits & 0x8000 ? -kInf : kInf) << i;
    } else {
      ASSERT_EQ(static_cast<double>(got), format.value(bits)) << i;
      ASSERT_EQ(std::signbit(got), (bits & 0x8000) != 0) << i;
    }
  }
}

TEST_P(Convert, every_pattern_round_trips) {
  const Format& format = GetParam();
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const uint16_t back = format.from_float(format.to_float(bits));
    if (format.is_nan(bits)) {
      ASSERT_TRUE(format.is_nan(back)) << i;
    } else {
      ASSERT_EQ(back, bits) << i;
    }
  }
}

TEST_P(Convert, midpoints_round_to_even_and_their_neighbours_to_the_nearer) {
  const Format& format = GetParam();
  for (int i = 0; i < format.infinity(); ++i) {
    const auto low = static_cast<uint16_t>(i);
    const auto high = static_cast<uint16_t>(i + 1);
    const auto middle = static_cast<float>((format.value(low) + format.value(high)) / 2);
    const uint16_t even = i % 2 == 0 ? low : high;
    ASSERT_EQ(format.from_float(middle), even) << i;
    ASSERT_EQ(format.from_float(-middle), even | 0x8000) << i;
    ASSERT_EQ(format.from_float(std::nextafter(middle, 0.0f)), low) << i;
    ASSERT_EQ(format.from_float(std::nextafter(middle, kInf)), high) << i;
  }
}

TEST_P(Convert, what_is_too_large_becomes_infinite) {
  const Format& format = GetParam();
  EXPECT_EQ(format.from_float(std::numeric_limits<float>::max()), format.infinity());
  EXPECT_EQ(format.from_float(-std::numeric_limits<float>::max()), format.infinity() | 0x8000);
  EXPECT_EQ(format.from_float(kInf), format.infinity());
  EXPECT_EQ(format.from_float(-kInf), format.infinity() | 0x8000);
}

TEST_P(Convert, nan_with_any_payload_stays_nan) {
  const Format& format = GetParam();
  for (const uint32_t bits : {0x7fc00000u, 0x7f800001u, 0x7fffffffu, 0xffc00000u, 0xff800001u}) {
    EXPECT_TRUE(format.is_nan(format.from_float(std::bit_cast<float>(bits)))) << bits;
  }
}

TEST_P(Convert, zero_keeps_its_sign) {
  const Format& format = GetParam();
  EXPECT_EQ(format.from_float(0.0f), 0);
  EXPECT_EQ(format.from_float(-0.0f), 0x8000);
  EXPECT_EQ(format.from_float(-std::numeric_limits<float>::denorm_min()), 0x8000);
}

INSTANTIATE_TEST_SUITE_P(Formats, Convert,
                         testing::Values(Format{"bf16", 7, 127, bf16_to_float, float_to_bf16},
                                         Format{"fp16", 10, 15, f16_to_float, float_to_f16}),
                         [](const auto& info) { return info.param.name; });

TEST(E4m3, has_the_numbers_of_its_format) {
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9f);
  EXPECT_EQ(e4m3_to_float(0x07), 7 * 0x1p-9f);
  EXPECT_EQ(e4m3_to_float(0x08), 0x1p-6f);
  EXPECT_EQ(e4m3_to_float(0x38), 1.0f);
  EXPECT_EQ(e4m3_to_float(0xb9), -1.125f);
  EXPECT_EQ(e4m3_to_float(0x7e), 448.0f);
  EXPECT_TRUE(std::isnan(e4m3_to_float(0x7f)) && std::isnan(e4m3_to_float(0xff)));
  EXPECT_TRUE(std::signbit(e4m3_to_float(0x80)));
  for (int code = 0; code < 0x7e; ++code) {
    EXPECT_LT(e4m3_to_float(static_cast<uint8_t>(code)),
              e4m3_to_float(static_cast<uint8_t>(code + 1)));
  }
}

TEST(E4m3, is_rounded_to_the_nearest_and_ties_to_even) {
  for (int code = 0; code < 0x7e; ++code) {
    for (const int sign : {0, 0x80}) {
      const auto low = static_cast<uint8_t>(code | sign);
      const auto high = static_cast<uint8_t>((code + 1) | sign);
      const float a = e4m3_to_float(low), b = e4m3_to_float(high), middle = (a + b) / 2;
      EXPECT_EQ(float_to_e4m3(a), low);
      EXPECT_EQ(float_to_e4m3(b), high);
      EXPECT_EQ(float_to_e4m3(middle), code % 2 == 0 ? low : high) << code;
      EXPECT_EQ(float_to_e4m3(std::nextafter(middle, a)), low) << code;
      EXPECT_EQ(float_to_e4m3(std::nextafter(middle, b)), high) << code;
    }
  }
}

TEST(E4m3, saturates_and_keeps_nan) {
  for (const float value : {448.0f, 449.0f, 464.0f, 480.0f, 1e30f, kInf}) {
    EXPECT_EQ(float_to_e4m3(value), 0x7e) << value;
    EXPECT_EQ(float_to_e4m3(-value), 0xfe) << value;
  }
  EXPECT_EQ(float_to_e4m3(kNan) & 0x7f, 0x7f);
  EXPECT_EQ(float_to_e4m3(-0.0f), 0x80);
  EXPECT_EQ(float_to_e4m3(1e-30f), 0);
}

class Element : public testing::TestWithParam<DType> {};

TEST_P(Element, is_stored_and_loaded_at_its_index) {
  const DType dtype = GetParam();
  std::vector<std::byte> memory(static_cast<size_t>(4 * dtype_bytes(dtype)));
  for (int i = 0; i < 4; ++i) store_element(memory.data(), i, dtype, 0.5f - static_cast<float>(i));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(load_element(memory.data(), i, dtype), 0.5f - static_cast<float>(i));
  }
}

TEST_P(Element, round_to_is_what_store_then_load_gives) {
  const DType dtype = GetParam();
  for (const float value : {0.1f, -3.14159f, 1e-7f, 1e30f, -kInf, kNan, 65519.9f, 0.0f}) {
    uint32_t memory = 0;
    store_element(&memory, 0, dtype, value);
    const float want = load_element(&memory, 0, dtype);
    const float got = round_to(value, dtype);
    EXPECT_TRUE(got == want || (std::isnan(got) && std::isnan(want))) << value;
  }
}

TEST_P(Element, epsilon_is_the_step_after_one) {
  const DType dtype = GetParam();
  const double epsilon = dtype_epsilon(dtype);
  EXPECT_EQ(round_to(static_cast<float>(1 + epsilon), dtype), 1 + epsilon);
  EXPECT_EQ(round_to(static_cast<float>(1 + 0.5 * epsilon), dtype), 1);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Element,
                         testing::Values(DType::kF32, DType::kBF16, DType::kF16, DType::kE4M3),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

}  // namespace
}  // namespace pando
