// Request traces in the public Mooncake format: one JSON object a line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pando::replay {

/// Prompt tokens that one hash id stands for.
inline constexpr int32_t kBlockTokens = 512;
/// Largest input_length and output_length that a trace may hold.
inline constexpr int64_t kMaxTokens = int64_t{1} << 24;
/// Largest timestamp and hash id: what every JSON reader keeps exactly.
inline constexpr int64_t kMaxInteger = int64_t{1} << 53;

struct Request {
  int64_t timestamp_ms = 0;
  int32_t input_tokens = 0;       ///< in [1, kMaxTokens]
  int32_t output_tokens = 0;      ///< in [0, kMaxTokens]
  std::vector<int64_t> hash_ids;  ///< one for each block of kBlockTokens prompt tokens, the last
                                  ///< block may be shorter; equal prefixes of ids, equal prompts
};

/// Requests in the order of the file.
using Trace = std::vector<Request>;

/// Reads `{"timestamp", "input_length", "output_length", "hash_ids"}` lines. Blank lines and other
/// fields are ignored. Throws kIo with "file:line: reason" for anything else, and for no request.
Trace parse_trace(std::string_view text, std::string_view file_name);

/// parse_trace of a file; throws kIo when it cannot be read.
Trace read_trace(const std::string& path);

}  // namespace pando::replay
