// A case as a safetensors file: tensors q, k, v, q_indptr, kv_len, page_indptr, page_ids and, when
// given, visible; the rest as JSON in the metadata under "pando".
#pragma once

#include <span>
#include <string>

#include "cases/case.h"

namespace pando::cases {

/// Throws kIo; nothing is left behind then. A strided q is written contiguous.
void write_case(const std::string& path, const Case& problem);

/// Throws kIo naming file, tensor and what is wrong; a case that is returned is consistent.
Case read_case(const std::string& path);
/// The same from bytes in memory; `origin` names them in errors.
Case parse_case(std::span<const std::byte> file, const std::string& origin);

}  // namespace pando::cases
