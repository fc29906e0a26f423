// Dtypes, layouts, head grouping, errors and the version.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <utility>

#include "core/check.h"
#include "core/grouping.h"
#include "pando/attention.h"
#include "pando/version.h"

namespace pando {
namespace {

TEST(Dtype, names_go_there_and_back) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  }
  EXPECT_EQ(dtype_name(DType::kF32), "fp32");
  EXPECT_EQ(dtype_name(DType::kBF16), "bf16");
  EXPECT_EQ(dtype_name(DType::kF16), "fp16");
  EXPECT_EQ(dtype_name(DType::kE4M3), "fp8");
}

TEST(Dtype, unknown_name_is_refused_with_the_list) {
  for (const char* name : {"", "float", "BF16", "fp8", "bf16 "}) {
    try {
      dtype_from_name(name);
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
      EXPECT_NE(error.message.find("fp32, bf16, fp16"), std::string::npos) << error.message;
      EXPECT_NE(error.message.find('"' + std::string(name) + '"'), std::string::npos);
    }
  }
}

TEST(Dtype, sizes_in_bytes) {
  EXPECT_EQ(dtype_bytes(DType::kF32), 4);
  EXPECT_EQ(dtype_bytes(DType::kBF16), 2);
  EXPECT_EQ(dtype_bytes(DType::kF16), 2);
  EXPECT_EQ(dtype_bytes(DType::kE4M3), 1);
}

TEST(AttentionSpec, scale_defaults_to_one_over_root_head_dim) {
  AttentionSpec spec;
  spec.head_dim = 64;
  EXPECT_EQ(spec.scale_or_default(), 0.125f);
  spec.scale = 0.5f;
  EXPECT_EQ(spec.scale_or_default(), 0.5f);
  spec.scale = 0.0f;  // given is given, even 0
  EXPECT_EQ(spec.scale_or_default(), 0.0f);
}

/// Walks a layout in memory order and expects the offsets 0, head_dim, 2 * head_dim, ...
template <typename Index>
void expect_contiguous(const KvLayout& kv, Index index) {
  int64_t want = 0;
  for (int64_t page = 0; page < kv.num_pages; ++page) {
    for (int32_t outer = 0; outer < index.outer; ++outer) {
      for (int32_t inner = 0; inner < index.inner; ++inner) {
        EXPECT_EQ(index.at(kv, page, outer, inner), want);
        want += kv.head_dim;
      }
    }
  }
  EXPECT_EQ(want, kv.num_pages * kv.page_tokens * kv.kv_heads * kv.head_dim);
}

TEST(KvLayout, hnd_is_contiguous_by_page_head_token) {
  struct Index {
    int32_t outer = 2, inner = 4;
    int64_t at(const KvLayout& kv, int64_t page, int32_t head, int32_t slot) const {
      return kv.offset(page, head, slot);
    }
  };
  expect_contiguous(KvLayout::hnd(3, 4, 2, 8), Index{});
}

TEST(KvLayout, nhd_is_contiguous_by_page_token_head) {
  struct Index {
    int32_t outer = 4, inner = 2;
    int64_t at(const KvLayout& kv, int64_t page, int32_t slot, int32_t head) const {
      return kv.offset(page, head, slot);
    }
  };
  expect_contiguous(KvLayout::nhd(3, 4, 2, 8), Index{});
}

TEST(KvLayout, offsets_past_2_to_31_elements_do_not_overflow) {
  for (const KvLayout& kv :
       {KvLayout::hnd(2147483647, 256, 64, 256), KvLayout::nhd(2147483647, 256, 64, 256)}) {
    const int64_t page = int64_t{256} * 64 * 256;
    EXPECT_EQ(kv.page_stride, page);
    EXPECT_EQ(kv.offset(2147483646, 63, 255), 2147483647 * page - 256);
  }
}

TEST(Grouping, packing_is_a_bijection_for_every_group) {
  for (int32_t group = 1; group <= 128; ++group) {
    const int32_t kv_heads = 3;
    std::set<std::pair<int64_t, int32_t>> seen;
    int64_t packed = 0;
    for (int64_t row = 0; row < 5; ++row) {
      for (int32_t member = 0; member < group; ++member, ++packed) {
        EXPECT_EQ(packed_row(row, member, group), packed);
        EXPECT_EQ(row_of_packed(packed, group), row);
        for (int32_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
          const int32_t q_head = q_head_of_packed(packed, kv_head, group);
          EXPECT_EQ(q_head / group, kv_head);
          EXPECT_TRUE(seen.emplace(row, q_head).second);
        }
      }
    }
    EXPECT_EQ(seen.size(), static_cast<size_t>(5 * group * kv_heads));
  }
}

TEST(Grouping, rows_past_2_to_31_do_not_overflow) {
  EXPECT_EQ(packed_row(int64_t{1} << 31, 127, 128), (int64_t{1} << 38) + 127);
  EXPECT_EQ(row_of_packed((int64_t{1} << 38) + 127, 128), int64_t{1} << 31);
}

TEST(Error, carries_code_and_formatted_message) {
  EXPECT_NO_THROW(require(true, "head_dim: got {}", 1));
  try {
    require(false, "head_dim: got {}, want a multiple of {}", 100, 8);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "head_dim: got 100, want a multiple of 8");
  }
  EXPECT_THROW(fail(ErrorCode::kUnsupported, "no"), Error);
}

TEST(Version, is_that_of_the_header) {
  EXPECT_EQ(std::string(version()), std::to_string(PANDO_VERSION_MAJOR) + "." +
                                        std::to_string(PANDO_VERSION_MINOR) + "." +
                                        std::to_string(PANDO_VERSION_PATCH));
}

}  // namespace
}  // namespace pando
