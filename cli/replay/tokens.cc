#include "replay/tokens.h"

#include <algorithm>

#include "cases/rng.h"

namespace pando::replay {
namespace {

int32_t as_token(uint64_t hash) { return static_cast<int32_t>(hash >> 33); }

}  // namespace

int64_t scaled_prompt(const Request& request, const Scale& scale) {
  return std::max<int64_t>(1, scale.apply(request.input_tokens));
}

int64_t scaled_answer(const Request& request, const Scale& scale) {
  return std::max<int64_t>(1, scale.apply(request.output_tokens));
}

std::vector<int32_t> prompt_tokens(const Request& request, const Scale& scale) {
  std::vector<int32_t> tokens(scaled_prompt(request, scale));
  const auto blocks = static_cast<int64_t>(request.hash_ids.size());
  const auto length = static_cast<int64_t>(tokens.size());
  int64_t begin = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    // The last block also takes the one token of a prompt that scales to none.
    const int64_t end =
        block + 1 == blocks ? length : std::min(length, scale.apply((block + 1) * kBlockTokens));
    for (int64_t t = begin; t < end; ++t) {
      tokens[t] = as_token(cases::mix_seed(request.hash_ids[block], t - begin));
    }
    begin = end;
  }
  return tokens;
}

int32_t answer_token(uint64_t seed, int64_t request, int32_t sample, int64_t position) {
  const uint64_t stream = cases::mix_seed(cases::mix_seed(seed, request), sample);
  return as_token(cases::mix_seed(stream, position));
}

}  // namespace pando::replay
