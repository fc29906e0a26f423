// What the rows of the edges suite share: the kinds that each row is run in.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cases/suites.h"

namespace pando::cases {

/// One way to store the same problem.
struct Kind {
  DType dtype = DType::kBF16;
  KvOrder order = KvOrder::kHnd;
  std::optional<DType> kv_dtype = {};  ///< absent: as dtype
  std::string name() const;
};
/// All dtypes in both page layouts; quick: bf16 in the first layout. K and V as options.kv_dtype.
std::vector<Kind> edge_kinds(const SuiteOptions& options);

/// A case of a kind, with heads and head_dim set and without data.
Case edge_case(const Kind& kind, Tables tables, int32_t q_heads, int32_t kv_heads,
               int32_t head_dim = 128);
/// Page tables of a shape with pages of `page_tokens`.
Tables edge_tables(const ForestShape& shape, int32_t page_tokens = 16);
/// Fills with normal data and verifies in every mode.
Outcome verify_edge(Case problem, Runner& runner);

/// One suite case for each kind: "row-name/dtype/layout".
void add_kinds(std::vector<SuiteCase>& to, const std::string& name, const SuiteOptions& options,
               const std::function<Outcome(const Kind&, Runner&)>& run);

std::vector<SuiteCase> edge_values(const SuiteOptions& options);  ///< rows 1, 3, 6, 7, 10
std::vector<SuiteCase> edge_shapes(const SuiteOptions& options);  ///< rows 2, 4, 5, 8, 9, 11–13

}  // namespace pando::cases
