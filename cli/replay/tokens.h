// Token ids for requests of a trace that holds none.
#pragma once

#include <cstdint>
#include <vector>

#include "replay/options.h"
#include "replay/trace.h"

namespace pando::replay {

/// Tokens of the prompt and of the answer after scaling; at least one each.
int64_t scaled_prompt(const Request& request, const Scale& scale);
int64_t scaled_answer(const Request& request, const Scale& scale);

/// A prompt in which block `i` covers the scaled image of tokens [512 i, 512 (i + 1)) and holds
/// tokens that its hash id and the place in the block determine. So prompts that begin with the
/// same hash ids begin with the same tokens.
std::vector<int32_t> prompt_tokens(const Request& request, const Scale& scale);

/// Token `position` of the answer in sample `sample` of request number `request`.
int32_t answer_token(uint64_t seed, int64_t request, int32_t sample, int64_t position);

}  // namespace pando::replay
