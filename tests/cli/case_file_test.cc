#include "cases/case_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cases/files.h"
#include "cases/generate.h"
#include "cases/safetensors.h"
#include "cli/scratch_dir.h"
#include "pando/error.h"
#include "support/message_of.h"

namespace pando::cases {
namespace {

Case small_case(KvOrder order = KvOrder::kHnd, DType dtype = DType::kBF16) {
  Case problem;
  problem.name = "small";
  Rng rng(1);
  problem.tables = page_tables(prefix_shape(3, 20, 5, 2), {.page_tokens = 4}, rng);
  problem.spec.q_heads = 4;
  problem.spec.kv_heads = 2;
  problem.spec.head_dim = 8;
  problem.spec.dtype = dtype;
  problem.order = order;
  fill_data(problem, {.seed = 3});
  return problem;
}

void expect_same(const Case& a, const Case& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.tables.q_indptr, b.tables.q_indptr);
  EXPECT_EQ(a.tables.kv_len, b.tables.kv_len);
  EXPECT_EQ(a.tables.page_indptr, b.tables.page_indptr);
  EXPECT_EQ(a.tables.page_ids, b.tables.page_ids);
  EXPECT_EQ(a.tables.page_tokens, b.tables.page_tokens);
  EXPECT_EQ(a.tables.num_pages, b.tables.num_pages);
  EXPECT_EQ(a.spec.q_heads, b.spec.q_heads);
  EXPECT_EQ(a.spec.kv_heads, b.spec.kv_heads);
  EXPECT_EQ(a.spec.head_dim, b.spec.head_dim);
  EXPECT_EQ(a.spec.dtype, b.spec.dtype);
  EXPECT_EQ(a.spec.scale, b.spec.scale);
  EXPECT_EQ(a.spec.causal, b.spec.causal);
  EXPECT_EQ(a.spec.window, b.spec.window);
  EXPECT_EQ(a.visible, b.visible);
  EXPECT_EQ(a.spec.soft_cap, b.spec.soft_cap);
  EXPECT_EQ(a.tree_mask, b.tree_mask);
  EXPECT_EQ(a.sinks, b.sinks);
  EXPECT_EQ(a.spec.kv_dtype, b.spec.kv_dtype);
  EXPECT_EQ(a.k_scale, b.k_scale);
  EXPECT_EQ(a.v_scale, b.v_scale);
  EXPECT_EQ(a.order, b.order);
  ASSERT_EQ(a.k.size(), b.k.size());
  EXPECT_EQ(std::memcmp(a.k.data(), b.k.data(), a.k.size()), 0);
  EXPECT_EQ(std::memcmp(a.v.data(), b.v.data(), a.v.size()), 0);
}

/// The file of small_case() with one change in its metadata.
std::string refusal_after(const std::function<void(nlohmann::json&)>& change) {
  const ScratchDir dir;
  write_case(dir / "c", small_case());
  const Buffer bytes = read_file(dir / "c");
  Safetensors file = parse_safetensors(bytes.span(), "c");
  nlohmann::json json = nlohmann::json::parse(file.metadata.at("pando"));
  change(json);
  file.metadata["pando"] = json.dump();
  write_safetensors(dir / "d", file.metadata, file.tensors);
  try {
    read_case(dir / "d");
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kIo);
    return error.message;
  }
  return "accepted";
}

/// The file of small_case() with one change in its tensors.
std::string refusal_after(const std::function<void(Safetensors&, std::vector<int32_t>&)>& change) {
  const ScratchDir dir;
  write_case(dir / "c", small_case());
  const Buffer bytes = read_file(dir / "c");
  Safetensors file = parse_safetensors(bytes.span(), "c");
  std::vector<int32_t> storage(64);
  change(file, storage);
  write_safetensors(dir / "d", file.metadata, file.tensors);
  try {
    read_case(dir / "d");
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kIo);
    return error.message;
  }
  return "accepted";
}

TensorView& at(Safetensors& file, const std::string& name) {
  return *std::find_if(file.tensors.begin(), file.tensors.end(),
                       [&](const TensorView& tensor) { return tensor.name == name; });
}

TEST(CaseFile, round_trip_keeps_everything) {
  const ScratchDir dir;
  for (const KvOrder order : {KvOrder::kHnd, KvOrder::kNhd}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      Case problem = small_case(order, dtype);
      problem.spec.scale = 0.25f;
      problem.spec.causal = false;
      problem.spec.window = 9;
      problem.visible.assign(6, {1, 7});
      write_case(dir / "c", problem);
      const Case back = read_case(dir / "c");
      expect_same(problem, back);
      EXPECT_EQ(std::memcmp(problem.q.data(), back.q.data(), problem.q.size()), 0);
    }
  }
}

TEST(CaseFile, round_trip_keeps_variants) {
  const ScratchDir dir;
  Case problem = small_case();
  problem.spec.soft_cap = 30;
  problem.tree_mask = {1, 3, 1, 3, 5, ~uint64_t{0}};
  problem.sinks = {0.5f, -1, 2, -INFINITY};
  write_case(dir / "c", problem);
  expect_same(problem, read_case(dir / "c"));
}

TEST(CaseFile, round_trip_keeps_fp8) {
  const ScratchDir dir;
  Case problem = small_case();
  problem.spec.kv_dtype = DType::kE4M3;
  fill_data(problem, {});
  EXPECT_EQ(static_cast<int64_t>(problem.k.size()), problem.kv_elements());
  for (const size_t scales : {size_t{2}, size_t{1}}) {
    problem.k_scale.resize(scales, 0);
    problem.v_scale.resize(scales, 0);
    write_case(dir / "c", problem);
    expect_same(problem, read_case(dir / "c"));
  }
  problem.k_scale = {1, 2, 3};
  write_case(dir / "c", problem);
  EXPECT_NE(pando::testing::message_of(ErrorCode::kIo, [&] { read_case(dir / "c"); })
                .find("tensor 'k_scale': got 3 entries, want 1"),
            std::string::npos);
  problem.k_scale.clear();
  write_case(dir / "c", problem);
  EXPECT_NE(pando::testing::message_of(ErrorCode::kIo, [&] { read_case(dir / "c"); })
                .find("tensor 'k_scale' is missing"),
            std::string::npos);
}

TEST(CaseFile, refuses_variants_that_do_not_fit) {
  EXPECT_NE(refusal_after([](auto& json) {
              json["kv_dtype"] = "fp16";
            }).find("kv_dtype: got \"fp16\", want fp8"),
            std::string::npos);
  EXPECT_NE(refusal_after([](auto& json) { json["soft_cap"] = -1; }).find("soft_cap: got -1"),
            std::string::npos);
  for (const char* name : {"soft_cap", "scale"}) {
    EXPECT_NE(refusal_after([&](auto& json) {
                json[name] = 1e-50;
              }).find("got 1e-50, want 0 or a number in fp32"),
              std::string::npos);
  }
  const auto with = [](const char* name, const char* dtype, int64_t count) {
    return refusal_after([=](Safetensors& file, std::vector<int32_t>& storage) {
      const auto bytes = std::as_bytes(std::span(storage));
      file.tensors.push_back(
          {name, dtype, {count}, bytes.first(count * (dtype[1] == '6' ? 8 : 4))});
    });
  };
  EXPECT_NE(with("sinks", "F32", 3).find("tensor 'sinks': got 3 entries, want 4"),
            std::string::npos);
  EXPECT_NE(with("sinks", "I32", 4).find("tensor 'sinks': got I32"), std::string::npos);
  EXPECT_NE(with("tree_mask", "U64", 5).find("tensor 'tree_mask': got 5 entries, want 6"),
            std::string::npos);
}

TEST(CaseFile, a_strided_q_is_written_contiguous) {
  const ScratchDir dir;
  Case problem = small_case();
  problem.q_head_stride = 16;
  problem.q_row_stride = 4 * 16 + 8;
  fill_data(problem, {.seed = 3});
  write_case(dir / "c", problem);
  const Case back = read_case(dir / "c");
  for (int64_t row = 0; row < 6; ++row) {
    for (int64_t head = 0; head < 4; ++head) {
      EXPECT_EQ(std::memcmp(problem.q.data() + problem.q_offset(row, head) * 2,
                            back.q.data() + back.q_offset(row, head) * 2, 16),
                0);
    }
  }
}

TEST(CaseFile, a_batch_without_sequences_round_trips) {
  const ScratchDir dir;
  Case problem = small_case();
  Rng rng(0);
  problem.tables = page_tables({}, {}, rng);
  fill_data(problem, {});
  write_case(dir / "c", problem);
  expect_same(problem, read_case(dir / "c"));
}

TEST(CaseFile, every_truncation_is_refused) {
  const ScratchDir dir;
  write_case(dir / "c", small_case());
  const Buffer bytes = read_file(dir / "c");
  for (size_t size = 0; size < bytes.size(); size += size < 2000 ? 1 : 37) {
    EXPECT_THROW(parse_case(bytes.span().first(size), "c"), Error) << size;
  }
}

TEST(CaseFile, metadata_fields_are_checked_by_name) {
  using Json = nlohmann::json;
  const auto field = [](const char* name, const Json& value) {
    return refusal_after([&](Json& json) { json[name] = value; });
  };
  const auto expect_named = [](const std::string& message, const char* name) {
    EXPECT_NE(message.find(std::string("'pando': ") + name + ": got"), std::string::npos)
        << message;
  };
  EXPECT_EQ(refusal_after([](Json&) {}), "accepted");
  expect_named(refusal_after([](Json& json) { json.erase("q_heads"); }), "q_heads");
  expect_named(field("q_heads", 0), "q_heads");
  expect_named(field("q_heads", 5), "q_heads");
  expect_named(field("q_heads", "4"), "q_heads");
  expect_named(field("kv_heads", -2), "kv_heads");
  expect_named(field("head_dim", 1e99), "head_dim");
  expect_named(field("causal", 1), "causal");
  expect_named(field("window", -1), "window");
  expect_named(field("scale", "wide"), "scale");
  expect_named(field("dtype", "fp8"), "dtype");
  expect_named(field("layout", "dhn"), "layout");
  expect_named(field("page_tokens", 0), "page_tokens");
  expect_named(field("format", 2), "format");
  expect_named(field("name", nullptr), "name");
  EXPECT_NE(field("name", Json::array({1})).find("nested"), std::string::npos);
  EXPECT_NE(field("page_tokens", 12).find("page_tokens: got 12"), std::string::npos);
  EXPECT_NE(field("page_tokens", 8).find("tensor 'k'"), std::string::npos);
}

TEST(CaseFile, tables_are_checked_by_name) {
  using Change = std::function<void(Safetensors&, std::vector<int32_t>&)>;
  const auto entry = [](const char* name, size_t index, int32_t value) {
    return refusal_after(Change([=](Safetensors& file, std::vector<int32_t>& storage) {
      TensorView& tensor = at(file, name);
      std::memcpy(storage.data(), tensor.data.data(), tensor.data.size());
      storage[index] = value;
      tensor.data = std::as_bytes(std::span(storage)).first(tensor.data.size());
    }));
  };
  const auto missing = [](const char* name) {
    return refusal_after(Change([=](Safetensors& file, std::vector<int32_t>&) {
      file.tensors.erase(file.tensors.begin() + (&at(file, name) - file.tensors.data()));
    }));
  };
  EXPECT_NE(entry("page_ids", 2, -1).find("page_ids[2]: got -1"), std::string::npos);
  EXPECT_NE(entry("page_ids", 2, 1 << 30).find("page_ids[2]"), std::string::npos);
  EXPECT_NE(entry("kv_len", 0, 29).find("kv_len[0]: got 29"), std::string::npos);
  EXPECT_NE(entry("q_indptr", 1, -7).find("q_indptr[1]: got -7"), std::string::npos);
  EXPECT_NE(entry("page_indptr", 0, 1).find("page_indptr[0]"), std::string::npos);
  EXPECT_NE(entry("page_indptr", 3, 1 << 30).find("page_ids: got"), std::string::npos);
  EXPECT_NE(entry("q_indptr", 3, 7).find("tensor 'q': got shape"), std::string::npos);
  for (const char* name : {"q", "k", "v", "q_indptr", "kv_len", "page_indptr", "page_ids"}) {
    EXPECT_NE(missing(name).find(std::string("tensor '") + name + "' is missing"),
              std::string::npos);
  }
}

TEST(CaseFile, another_safetensors_file_is_not_a_case) {
  const ScratchDir dir;
  write_safetensors(dir / "c", {{"format", "pt"}}, {});
  try {
    read_case(dir / "c");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(error.message.find("not a case file"), std::string::npos) << error.message;
  }
}

}  // namespace
}  // namespace pando::cases
