// Which variants of attention each backend supports: one table, from which the planner and the
// checks of a call refuse, random tests draw, and `pando info`, docs/variants.md and the Python
// package list.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "pando/profile.h"

namespace pando {

/// What may be asked of attention beside heads, dtype and pages.
enum class Variant : int32_t { kCausal, kWindow, kVisible, kTreeMask, kSoftCap, kSinks, kFp8Kv };

/// One row of the table. `name` is that of the argument, everywhere, with its value where only one
/// is meant.
struct VariantSupport {
  Variant variant;
  std::string_view name;
  bool cpu;
  bool cuda;
};

inline constexpr std::array kVariants = {
    VariantSupport{Variant::kCausal, "causal", true, true},
    VariantSupport{Variant::kWindow, "window", true, true},
    VariantSupport{Variant::kVisible, "visible", true, true},
    VariantSupport{Variant::kTreeMask, "tree_mask", true, true},
    VariantSupport{Variant::kSoftCap, "soft_cap", true, true},
    VariantSupport{Variant::kSinks, "sinks", true, true},
    VariantSupport{Variant::kFp8Kv, "kv_dtype=fp8", true, true},
};

constexpr bool variant_is_supported(const VariantSupport& support, Backend backend) {
  return backend == Backend::kCpu ? support.cpu : support.cuda;
}

/// The table for people, in Markdown.
std::string variants_table();

/// "causal, window, visible": the names that `backend` supports.
std::string variants_text(Backend backend);

/// Throws kUnsupported that names the variant and lists the others, unless `backend` supports it.
void check_variant(Variant variant, Backend backend);

}  // namespace pando
