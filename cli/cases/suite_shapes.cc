// The shapes suite: every shape and tree of the table, scaled to what a CPU does in a moment.
#include "cases/shapes_table.h"
#include "cases/suites.h"
#include "core/check.h"

namespace pando::cases {

std::vector<SuiteCase> shapes_suite(const SuiteOptions& options) {
  const int64_t max_kv_bytes = int64_t{options.quick ? 4 : 64} << 20;
  const double max_flops = options.quick ? 2e8 : 4e9;
  std::vector<SuiteCase> cases;
  for (const ShapeList list : {ShapeList::kShapes, ShapeList::kTrees}) {
    for (const Shape& shape : shapes(list)) {
      const double scale = scale_to_fit(shape, DType::kBF16, max_kv_bytes, max_flops);
      const std::string name =
          scale == 1 ? shape.name : fmt::format("{}-1/{:.0f}", shape.name, 1 / scale);
      const auto kv_dtype = options.kv_dtype;
      cases.push_back({"shapes", name, [&shape, scale, kv_dtype](Runner& runner) {
                         Case problem = shape_tables(scaled(shape, scale), DType::kBF16);
                         problem.spec.kv_dtype = kv_dtype;
                         fill_data(problem, {.seed = 1});
                         return verify_case(problem, all_modes(), runner);
                       }});
    }
  }
  return cases;
}

}  // namespace pando::cases
