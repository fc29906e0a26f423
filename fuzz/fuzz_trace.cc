// Any bytes as a request trace: it is read or refused.
#include <cstdint>
#include <string_view>

#include "expect.h"
#include "pando/error.h"
#include "replay/trace.h"

using pando::fuzz::expect;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const pando::replay::Trace trace = pando::replay::parse_trace(text, "fuzz");
    expect(!trace.empty(), "a trace has a request");
    for (const pando::replay::Request& request : trace) {
      const int64_t blocks = static_cast<int64_t>(request.hash_ids.size());
      expect(request.input_tokens > (blocks - 1) * pando::replay::kBlockTokens &&
                 request.input_tokens <= blocks * pando::replay::kBlockTokens,
             "a request has an id for each block of its prompt");
      expect(request.output_tokens >= 0 && request.timestamp_ms >= 0, "numbers are in range");
    }
  } catch (const pando::Error& error) {
    expect(error.code == pando::ErrorCode::kIo, "a bad trace is an I/O error");
  }
  return 0;
}
