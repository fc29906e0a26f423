#include "replay/trace.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "cli/scratch_dir.h"
#include "pando/error.h"

namespace pando::replay {
namespace {

/// A line whose fields are right but for those given.
std::string line_with(const std::string& name, const std::string& value) {
  std::string line;
  for (auto [field, text] :
       std::vector<std::pair<std::string, std::string>>{{"timestamp", "7"},
                                                        {"input_length", "600"},
                                                        {"output_length", "3"},
                                                        {"hash_ids", "[4, 5]"}}) {
    if (field == name) text = value;
    if (text.empty()) continue;
    line += fmt::format(R"({}"{}": {})", line.empty() ? "{" : ", ", field, text);
  }
  return line + "}";
}

const std::string kGood = line_with("", "");

/// Message of the kIo error that a text gives.
std::string refusal(const std::string& text) {
  try {
    parse_trace(text, "t.jsonl");
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kIo);
    return error.message;
  }
  ADD_FAILURE() << "accepted: " << text;
  return "";
}

TEST(Trace, lines_become_requests_in_order) {
  const Trace trace = parse_trace(
      kGood + "\n" +
          R"({"hash_ids": [9007199254740992], "timestamp": 0, "input_length": 512, "output_length": 0})",
      "t.jsonl");
  ASSERT_EQ(trace.size(), 2U);
  EXPECT_EQ(trace[0].timestamp_ms, 7);
  EXPECT_EQ(trace[0].input_tokens, 600);
  EXPECT_EQ(trace[0].output_tokens, 3);
  EXPECT_EQ(trace[0].hash_ids, (std::vector<int64_t>{4, 5}));
  EXPECT_EQ(trace[1].hash_ids, (std::vector<int64_t>{kMaxInteger}));
}

TEST(Trace, blank_lines_line_ends_and_other_fields_are_ignored) {
  const std::string extra = line_with("timestamp", R"(7, "model": {"name": [null]})");
  EXPECT_EQ(parse_trace("\n" + kGood + "\r\n \t\r\n" + extra + "\n\n", "t.jsonl").size(), 2U);
}

TEST(Trace, error_names_file_line_and_reason) {
  EXPECT_EQ(refusal(kGood + "\n\n" + kGood + "\nnonsense\n" + kGood), "t.jsonl:4: not JSON");
}

TEST(Trace, file_without_requests_is_refused) {
  const std::string wanted = "t.jsonl: got no request, want at least one line";
  for (const char* text : {"", "\n", " \r\n\t\n"}) EXPECT_EQ(refusal(text), wanted);
}

TEST(Trace, lines_that_are_no_object_are_refused) {
  EXPECT_EQ(refusal("{"), "t.jsonl:1: not JSON");
  EXPECT_EQ(refusal(kGood + kGood), "t.jsonl:1: not JSON");
  EXPECT_EQ(refusal(std::string("\0\xff", 2)), "t.jsonl:1: not JSON");
  EXPECT_EQ(refusal(std::string(3, '\xef')), "t.jsonl:1: not JSON");
  EXPECT_EQ(refusal("[1]"), "t.jsonl:1: got array, want a JSON object");
  EXPECT_EQ(refusal("null"), "t.jsonl:1: got null, want a JSON object");
  EXPECT_EQ(refusal(std::string(100'000, '[')), "t.jsonl:1: not JSON");
  EXPECT_EQ(refusal(std::string(100'000, '[') + std::string(100'000, ']')),
            "t.jsonl:1: got array, want a JSON object");
}

TEST(Trace, missing_fields_are_named) {
  for (const std::string field : {"timestamp", "input_length", "output_length", "hash_ids"}) {
    EXPECT_EQ(refusal(line_with(field, "")), "t.jsonl:1: field " + field + " is missing");
  }
}

TEST(Trace, values_that_are_no_integer_in_range_are_named) {
  const std::string fraction = "a fraction or a number beyond 64 bits";
  const std::vector<std::pair<std::string, std::string>> values{
      {"-1", "-1"},
      {"-9223372036854775808", "-9223372036854775808"},
      {"18446744073709551615", "18446744073709551615"},
      {"9007199254740993", "9007199254740993"},
      {"18446744073709551616", fraction},
      {"1e3", fraction},
      {"1.5", fraction},
      {"\"12\"", "string"},
      {"null", "null"},
      {"true", "boolean"},
      {"[1]", "array"},
      {"{}", "object"}};
  const std::vector<std::pair<std::string, std::string>> fields{
      {"timestamp", "[0, 9007199254740992]"},
      {"input_length", "[1, 16777216]"},
      {"output_length", "[0, 16777216]"}};
  for (const auto& [field, range] : fields) {
    for (const auto& [value, got] : values) {
      EXPECT_EQ(refusal(line_with(field, value)),
                fmt::format("t.jsonl:1: {}: got {}, want an integer in {}", field, got, range));
    }
  }
  for (const auto& [value, got] : values) {
    EXPECT_EQ(refusal(line_with("hash_ids", "[0, " + value + "]")),
              fmt::format("t.jsonl:1: hash_ids[1]: got {}, want an integer in {}", got,
                          "[0, 9007199254740992]"));
  }
  EXPECT_EQ(refusal(line_with("input_length", "0")),
            "t.jsonl:1: input_length: got 0, want an integer in [1, 16777216]");
  EXPECT_EQ(refusal(line_with("output_length", "16777217")),
            "t.jsonl:1: output_length: got 16777217, want an integer in [0, 16777216]");
}

TEST(Trace, hash_ids_that_do_not_cover_the_prompt_are_refused) {
  EXPECT_EQ(refusal(line_with("hash_ids", "[1]")),
            "t.jsonl:1: hash_ids: got 1 ids, want 2 for 600 tokens in blocks of 512");
  EXPECT_EQ(refusal(line_with("hash_ids", "[1, 2, 3]")),
            "t.jsonl:1: hash_ids: got 3 ids, want 2 for 600 tokens in blocks of 512");
  EXPECT_EQ(refusal(line_with("hash_ids", "[]")),
            "t.jsonl:1: hash_ids: got 0 ids, want 2 for 600 tokens in blocks of 512");
  EXPECT_EQ(refusal(line_with("hash_ids", "{}")), "t.jsonl:1: hash_ids: got object, want an array");
  for (const std::string length : {"513", "1024"}) {
    EXPECT_EQ(parse_trace(line_with("input_length", length), "t.jsonl").size(), 1U);
  }
  for (const std::string length : {"512", "1025"}) refusal(line_with("input_length", length));
}

TEST(Trace, files_are_read_whole_or_refused_by_name) {
  const ScratchDir dir;
  std::ofstream(dir / "a.jsonl", std::ios::binary) << kGood << '\n' << kGood << '\n' << "{}";
  try {
    read_trace(dir / "a.jsonl");
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.message, (dir / "a.jsonl") + ":3: field timestamp is missing");
  }
  std::ofstream(dir / "b.jsonl", std::ios::binary) << kGood;
  EXPECT_EQ(read_trace(dir / "b.jsonl").size(), 1U);
  for (const std::string& path : {dir / "none.jsonl", dir / "."}) {
    try {
      read_trace(path);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::kIo);
      EXPECT_EQ(error.message.rfind(path + ": ", 0), 0U) << error.message;
    }
  }
}

RC_GTEST_PROP(Trace, any_bytes_are_read_or_refused, ()) {
  // A good text with some of its bytes replaced, taken out or doubled reaches deeper than noise.
  std::string text = kGood + "\n" + kGood + "\n";
  const auto edits = *rc::gen::container<std::vector<std::pair<uint8_t, uint8_t>>>(
      rc::gen::arbitrary<std::pair<uint8_t, uint8_t>>());
  for (size_t i = 0; i < edits.size() && !text.empty(); ++i) {
    const size_t at = edits[i].first % text.size();
    if (i % 3 == 0) text[at] = static_cast<char>(edits[i].second);
    if (i % 3 == 1) text.erase(at, edits[i].second % 4);
    if (i % 3 == 2) text.insert(at, text.substr(at, edits[i].second % 8));
  }
  try {
    for (const Request& request : parse_trace(text, "t.jsonl")) {
      const auto blocks = static_cast<int64_t>(request.hash_ids.size());
      RC_ASSERT(request.input_tokens > (blocks - 1) * kBlockTokens);
      RC_ASSERT(request.input_tokens <= blocks * kBlockTokens);
    }
  } catch (const Error& error) {
    RC_ASSERT(error.code == ErrorCode::kIo);
  }
}

}  // namespace
}  // namespace pando::replay
