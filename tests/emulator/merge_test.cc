// The merge kernel's source, run on the host: against the merge of pando/merge.h, part by part.
#include "emulator/merge.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <vector>

#include "core/convert.h"
#include "pando/merge.h"

namespace pando::emulator {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

struct Case {
  int32_t count, rows, heads, head_dim;
  int64_t pad;  ///< elements after each row, and after each part
};

/// Partials of which every third row-head of a part is empty and holds NaN; in row 0 all are empty.
struct Partials {
  Partials(const Case& c, DType dtype) {
    p.row_stride = c.heads * c.head_dim + c.pad;
    p.head_stride = c.head_dim;
    p.part_stride = c.rows * p.row_stride + c.pad;
    p.lse_row_stride = c.heads + c.pad;
    p.lse_part_stride = c.rows * p.lse_row_stride + 1;
    p.out_row_stride = p.row_stride;
    p.out_head_stride = p.head_stride;
    parts.resize(c.count * p.part_stride);
    lses.resize(c.count * p.lse_part_stride);
    out.resize(c.rows * p.out_row_stride, kUnwritten);
    lse.resize(c.rows * c.heads);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < std::ssize(parts); ++i) {
      store_element(parts.data(), i, dtype, normal(random));
    }
    for (float& x : lses) x = 3 * normal(random);
    for (int64_t part = 0; part < c.count; ++part) {
      for (int64_t row = 0; row < c.rows; ++row) {
        for (int64_t head = 0; head < c.heads; ++head) {
          if (row > 0 && (part + row + head) % 3 != 0) continue;
          lses[part * p.lse_part_stride + row * p.lse_row_stride + head] = kEmpty;
          for (int32_t d = 0; d < c.head_dim; ++d) {
            store_element(parts.data(), at(part, row, head) + d, dtype,
                          std::numeric_limits<float>::quiet_NaN());
          }
        }
      }
    }
    p.parts = parts.data();
    p.lses = lses.data();
    p.out = out.data();
    p.lse = lse.data();
    p.count = c.count;
    p.rows = c.rows;
    p.heads = c.heads;
    p.head_dim = c.head_dim;
  }
  int64_t at(int64_t part, int64_t row, int64_t head) const {
    return part * p.part_stride + row * p.row_stride + head * p.head_stride;
  }

  static constexpr uint16_t kUnwritten = 0x1234;
  cuda::MergeParams p{};
  std::vector<uint16_t> parts, out;
  std::vector<float> lses, lse;
};

class EmulatedMerge : public ::testing::TestWithParam<DType> {};

TEST_P(EmulatedMerge, gives_the_bits_of_merge_into) {
  const DType dtype = GetParam();
  for (const Case& c :
       {Case{2, 3, 4, 64, 0}, Case{3, 5, 2, 128, 8}, Case{1, 2, 1, 8, 0}, Case{7, 9, 3, 96, 16}}) {
    Partials partials(c, dtype);
    merge(partials.p, dtype);
    for (int64_t row = 0; row < c.rows; ++row) {
      for (int64_t head = 0; head < c.heads; ++head) {
        std::vector<float> sum(c.head_dim), next(c.head_dim);
        float sum_lse = kEmpty;
        for (int64_t part = 0; part < c.count; ++part) {
          for (int32_t d = 0; d < c.head_dim; ++d) {
            next[d] = load_element(partials.parts.data(), partials.at(part, row, head) + d, dtype);
          }
          merge_into(
              sum.data(), &sum_lse, next.data(),
              partials
                  .lses[part * partials.p.lse_part_stride + row * partials.p.lse_row_stride + head],
              c.head_dim);
        }
        EXPECT_EQ(partials.lse[row * c.heads + head], sum_lse);
        for (int32_t d = 0; d < c.head_dim; ++d) {
          const int64_t to =
              row * partials.p.out_row_stride + head * partials.p.out_head_stride + d;
          ASSERT_EQ(load_element(partials.out.data(), to, dtype), round_to(sum[d], dtype))
              << row << " " << head << " " << d;
        }
      }
    }
    // Between the rows nothing is written.
    for (int64_t i = c.heads * c.head_dim; i < partials.p.out_row_stride; ++i) {
      EXPECT_EQ(partials.out[i], Partials::kUnwritten);
    }
  }
}

TEST_P(EmulatedMerge, leaves_the_lse_out_where_none_is_wanted) {
  Partials partials({2, 3, 4, 64, 0}, GetParam());
  partials.p.lse = nullptr;
  merge(partials.p, GetParam());
  EXPECT_EQ(partials.lse, std::vector<float>(12));
}

INSTANTIATE_TEST_SUITE_P(dtypes, EmulatedMerge, ::testing::Values(DType::kBF16, DType::kF16));

}  // namespace
}  // namespace pando::emulator
