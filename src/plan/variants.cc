#include "plan/variants.h"

#include <algorithm>

#include "core/check.h"

namespace pando {

std::string variants_table() {
  std::string text = "| variant | CPU | CUDA |\n|---|---|---|\n";
  for (const VariantSupport& support : kVariants) {
    text += fmt::format("| `{}` | {} | {} |\n", support.name, support.cpu ? "yes" : "no",
                        support.cuda ? "yes" : "no");
  }
  return text;
}

std::string variants_text(Backend backend) {
  std::string text;
  for (const VariantSupport& support : kVariants) {
    if (!variant_is_supported(support, backend)) continue;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", support.name);
  }
  return text;
}

void check_variant(Variant variant, Backend backend) {
  const auto at = std::ranges::find(kVariants, variant, &VariantSupport::variant);
  if (at != kVariants.end() && variant_is_supported(*at, backend)) return;
  fail(ErrorCode::kUnsupported, "{}: not supported by the {} backend, which supports {}",
       at == kVariants.end() ? "variant" : at->name, backend == Backend::kCpu ? "CPU" : "CUDA",
       variants_text(backend));
}

}  // namespace pando
