#include "cases/safetensors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "cases/files.h"
#include "cli/scratch_dir.h"
#include "pando/error.h"

namespace pando::cases {
namespace {

/// A file with this header text and so many data bytes.
std::vector<std::byte> file_of(const std::string& header, size_t data_bytes) {
  std::vector<std::byte> file(8 + header.size() + data_bytes);
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<std::byte>(header.size() >> (8 * i));
  std::memcpy(file.data() + 8, header.data(), header.size());
  return file;
}

std::string text_of(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string refusal(std::span<const std::byte> file) {
  // A copy of the exact size, so that a sanitizer sees any read past the end.
  const std::vector<std::byte> exact(file.begin(), file.end());
  try {
    parse_safetensors(exact, "some.file");
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kIo);
    EXPECT_TRUE(error.message.starts_with("some.file: ")) << error.message;
    return error.message;
  }
  return "accepted";
}

std::string refusal(const std::string& header, size_t data_bytes = 0) {
  return refusal(file_of(header, data_bytes));
}

std::string tensor(const std::string& fields) { return R"({"t":{)" + fields + "}}"; }

constexpr const char* kGood = R"("dtype":"F32","shape":[2,3],"data_offsets":[0,24])";

TEST(Safetensors, round_trip_keeps_names_shapes_bytes_and_metadata) {
  const ScratchDir dir;
  const std::vector<uint8_t> bytes = {1, 2, 3, 4, 5, 6};
  const std::vector<double> wide = {1.5, -2.5};
  const auto view = [](const auto& values) { return std::as_bytes(std::span(values)); };
  const std::map<std::string, std::string> metadata = {{"who", "\"quoted\" ünicode"},
                                                       {"empty", ""}};
  write_safetensors(dir / "a.safetensors", metadata,
                    {{"bytes", "U8", {2, 3}, view(bytes)},
                     {"wide", "F64", {2}, view(wide)},
                     {"none", "BF16", {0, 7}, {}},
                     {"one", "U8", {}, view(bytes).first(1)}});
  const Buffer file = read_file(dir / "a.safetensors");
  const Safetensors parsed = parse_safetensors(file.span(), "a");
  EXPECT_EQ(parsed.metadata, metadata);
  ASSERT_EQ(parsed.tensors.size(), 4u);
  EXPECT_EQ(parsed.find("bytes")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(parsed.find("bytes")->data.data(), bytes.data(), 6), 0);
  EXPECT_EQ(std::memcmp(parsed.find("wide")->data.data(), wide.data(), 16), 0);
  EXPECT_EQ(parsed.find("none")->shape, (std::vector<int64_t>{0, 7}));
  EXPECT_TRUE(parsed.find("one")->shape.empty());
  EXPECT_EQ(parsed.find("two"), nullptr);
  EXPECT_EQ((parsed.find("wide")->data.data() - file.data()) % 8, 0) << "wide tensors are aligned";
}

TEST(Safetensors, an_empty_file_of_tensors_is_well_formed) {
  const ScratchDir dir;
  write_safetensors(dir / "e", {}, {});
  EXPECT_TRUE(parse_safetensors(read_file(dir / "e").span(), "e").tensors.empty());
}

TEST(Safetensors, every_truncation_is_refused) {
  const std::vector<std::byte> file = file_of(tensor(kGood), 24);
  EXPECT_EQ(refusal(file), "accepted");
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_NE(refusal(std::span(file).first(size)), "accepted") << size << " bytes";
  }
}

TEST(Safetensors, every_changed_byte_is_refused_or_parsed_in_range) {
  const std::vector<std::byte> file = file_of(tensor(kGood), 24);
  for (size_t at = 0; at < file.size() - 24; ++at) {
    for (const int value : {0x00, 0x22, 0x2d, 0x39, 0x5b, 0x7b, 0x7d, 0x80, 0xff}) {
      std::vector<std::byte> changed = file;
      changed[at] = static_cast<std::byte>(value);
      refusal(changed);
    }
  }
}

TEST(Safetensors, header_size_beyond_the_file_is_refused) {
  std::vector<std::byte> file = file_of("{}", 0);
  for (const int byte : {0, 3, 7}) {
    std::vector<std::byte> changed = file;
    changed[byte] = std::byte{0xff};
    EXPECT_NE(refusal(changed).find("byte 0: header size"), std::string::npos);
  }
}

struct Malformed {
  const char* name;
  std::string header;
  size_t data_bytes;
  const char* reason;
};

class SafetensorsMalformed : public testing::TestWithParam<Malformed> {};

TEST_P(SafetensorsMalformed, is_refused_with_its_reason) {
  const std::string message = refusal(GetParam().header, GetParam().data_bytes);
  EXPECT_NE(message.find(GetParam().reason), std::string::npos) << message;
}

const Malformed kMalformed[] = {
    {"not_an_object", "[]", 0, "does not start with '{'"},
    {"empty_header", "", 0, "does not start with '{'"},
    {"leading_space", " {}", 0, "does not start with '{'"},
    {"not_json", "{\"a\":}", 0, "not JSON"},
    {"unclosed", "{\"a\":{", 0, "not JSON"},
    {"invalid_utf8", "{\"\xff\":{}}", 0, "not JSON"},
    {"duplicate_name", R"({"t":{},"t":{}})", 0, "'t' occurs twice"},
    {"duplicate_field", tensor(R"("dtype":"F32","dtype":"F32")"), 0, "'dtype' occurs twice"},
    {"nested_deeply", R"({"t":{"shape":[[[[[]]]]]}})", 0, "nested deeper"},
    {"tensor_not_an_object", R"({"t":3})", 0, "tensor 't': want an object"},
    {"unknown_field", tensor(R"("strides":[1])"), 0, "unknown field 'strides'"},
    {"no_dtype", tensor(R"("shape":[1],"data_offsets":[0,4])"), 4, "dtype is missing"},
    {"dtype_number", tensor(R"("dtype":4,"shape":[1],"data_offsets":[0,4])"), 4, "not a string"},
    {"dtype_unknown", tensor(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])"), 4, "'F31'"},
    {"no_shape", tensor(R"("dtype":"F32","data_offsets":[0,4])"), 4, "shape is missing"},
    {"shape_negative", tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4, "holds -1"},
    {"shape_fraction", tensor(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])"), 4, "1.5"},
    {"shape_text", tensor(R"("dtype":"F32","shape":["1"],"data_offsets":[0,4])"), 4, "shape holds"},
    {"shape_past_int64",
     tensor(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4])"), 4,
     "shape holds"},
    {"shape_overflow",
     tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0,
     "more than 2^63 bytes"},
    {"no_offsets", tensor(R"("dtype":"F32","shape":[1])"), 4, "data_offsets is missing"},
    {"three_offsets", tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])"), 4,
     "not two integers"},
    {"offsets_reversed", tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4,
     "not within"},
    {"offsets_past_the_end", tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), 4,
     "not within the file's 4 data bytes"},
    {"offsets_huge", tensor(R"("dtype":"F32","shape":[1],"data_offsets":[18446744073709551615,3])"),
     4, "data_offsets holds"},
    {"size_mismatch", tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4,
     "data_offsets hold 4 bytes, shape [2] of F32 wants 8"},
    {"overlap",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
     R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
     6, "overlaps"},
    {"hole",
     R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
     R"("b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})",
     6, "leaves a hole"},
    {"trailing_bytes", tensor(R"("dtype":"U8","shape":[2],"data_offsets":[0,2])"), 5,
     "3 bytes follow"},
    {"metadata_not_an_object", R"({"__metadata__":"x"})", 0, "__metadata__"},
    {"metadata_not_strings", R"({"__metadata__":{"x":1}})", 0, "'x' is not a string"},
};

INSTANTIATE_TEST_SUITE_P(All, SafetensorsMalformed, testing::ValuesIn(kMalformed),
                         [](const auto& info) { return info.param.name; });

TEST(Files, missing_file_is_named) {
  const ScratchDir dir;
  try {
    read_file(dir / "absent");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kIo);
    EXPECT_NE(error.message.find("absent: cannot open"), std::string::npos) << error.message;
  }
}

TEST(Files, a_directory_is_refused) {
  const ScratchDir dir;
  EXPECT_THROW(read_file(dir / "."), Error);
}

TEST(Files, without_commit_nothing_is_left) {
  const ScratchDir dir;
  {
    AtomicFile file(dir / "x");
    file.write("half of the conte");
  }
  EXPECT_TRUE(dir.empty());
}

TEST(Files, commit_replaces_the_old_content_as_a_whole) {
  const ScratchDir dir;
  for (const char* text : {"first", "2nd"}) {
    AtomicFile file(dir / "x");
    file.write(text);
    file.commit();
    std::ifstream in(dir / "x");
    std::string got;
    in >> got;
    EXPECT_EQ(got, text);
  }
}

void write_to(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

TEST(Files, a_file_that_is_replaced_keeps_its_mode) {
  const ScratchDir dir;
  for (const auto mode : {std::filesystem::perms{0600}, std::filesystem::perms{0664}}) {
    std::ofstream(dir / "x") << "old";
    std::filesystem::permissions(dir / "x", mode);
    write_to(dir / "x", "new");
    EXPECT_EQ(text_of(dir / "x"), "new");
    EXPECT_EQ(std::filesystem::status(dir / "x").permissions(), mode);
  }
}

TEST(Files, what_a_link_leads_to_is_replaced_and_not_the_link) {
  const ScratchDir dir;
  std::filesystem::create_directory(dir / "deep");
  std::filesystem::create_symlink("deep/next", dir / "link");
  std::filesystem::create_symlink(dir / "x", dir / "deep/next");
  for (const char* text : {"there was none", "2nd"}) {
    write_to(dir / "link", text);
    EXPECT_TRUE(std::filesystem::is_symlink(dir / "link"));
    EXPECT_TRUE(std::filesystem::is_symlink(dir / "deep/next"));
    EXPECT_EQ(text_of(dir / "x"), text);
  }
  std::filesystem::create_symlink("circle", dir / "circle");
  EXPECT_THROW(AtomicFile(dir / "circle"), Error);
  EXPECT_TRUE(std::filesystem::is_symlink(dir / "circle"));
}

TEST(Files, a_pipe_is_written_through) {
  const ScratchDir dir;
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  const int reader = open((dir / "pipe").c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  write_to(dir / "pipe", "text");
  char got[8] = {};
  EXPECT_EQ(read(reader, got, sizeof got), 4);
  EXPECT_STREQ(got, "text");
  close(reader);
  EXPECT_TRUE(std::filesystem::is_fifo(dir / "pipe"));
}

TEST(Files, a_device_is_written_through) {
  const ScratchDir dir;
  // As /dev/null is: only root may make one, and not in every directory.
  if (mknod((dir / "null").c_str(), S_IFCHR | 0600, makedev(1, 3)) != 0 ||
      access((dir / "null").c_str(), W_OK) != 0 || !std::ofstream(dir / "null")) {
    GTEST_SKIP() << "no devices can be made here";
  }
  write_to(dir / "null", "text");
  EXPECT_TRUE(std::filesystem::is_character_file(dir / "null"));
}

TEST(Files, a_directory_is_no_file_to_write) {
  const ScratchDir dir;
  EXPECT_THROW(AtomicFile(dir / "."), Error);
  EXPECT_TRUE(dir.empty());
}

TEST(Files, an_impossible_path_is_refused_before_anything_is_written) {
  EXPECT_THROW(AtomicFile("/nonexistent/directory/x"), Error);
}

}  // namespace
}  // namespace pando::cases
