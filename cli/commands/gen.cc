// pando gen: writes a case file.
#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cases/case_file.h"
#include "cases/generate.h"
#include "cases/shapes_table.h"
#include "commands/commands.h"
#include "commands/common.h"
#include "core/check.h"
#include "core/mask.h"
#include "term/style.h"

namespace pando::cli {
namespace {

std::vector<int32_t> parse_levels(std::string_view text, std::string_view whole) {
  std::vector<int32_t> values;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    int32_t value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    require(error == std::errc() && (next == end || *next == ','),
            "tree: got \"{}\", want nodes and tokens of each level, such as 1,4,16:512,128,32",
            whole);
    values.push_back(value);
    if (next == end) return values;
    at = next + 1;
  }
}

cases::ForestShape parse_tree(const std::string& text, int32_t q_len) {
  const size_t colon = text.find(':');
  require(colon != std::string::npos,
          "tree: got \"{}\", want nodes and tokens of each level, such as 1,4,16:512,128,32", text);
  const std::string_view view(text);
  return cases::tree_shape(parse_levels(view.substr(0, colon), text),
                           parse_levels(view.substr(colon + 1), text), q_len);
}

cases::Unused parse_unused(std::string_view name) {
  using cases::Unused;
  if (name == "zero") return Unused::kZero;
  if (name == "nan") return Unused::kNan;
  if (name == "inf") return Unused::kInf;
  if (name == "mixed") return Unused::kMixed;
  fail(ErrorCode::kInvalidArgument, "unused: got \"{}\", want one of zero, nan, inf, mixed", name);
}

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  require(value >= low && value <= high, "{}: got {}, want a number in [{}, {}]", name, value, low,
          high);
}

/// The forest that the options describe; a shape of the table also says how many heads there are.
cases::ForestShape make_shape(const GenOptions& options, cases::Rng& rng, AttentionSpec& spec) {
  spec.q_heads = 32;
  spec.kv_heads = 8;
  if (!options.tree.empty()) return parse_tree(options.tree, options.q_len);
  if (!options.shape.empty()) {
    require(options.scale > 0 && options.scale <= 1, "scale: got {}, want a number in (0, 1]",
            options.scale);
    const cases::Shape shape = cases::scaled(cases::find_shape(options.shape), options.scale);
    spec.q_heads = shape.q_heads;
    spec.kv_heads = shape.kv_heads;
    return cases::tree_shape(shape.nodes, shape.tokens, options.q_len);
  }
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  check_range("batch", options.batch, 0, cases::kMostNodes - 1);
  check_range("prefix", options.prefix, 0, kMost);
  check_range("suffix", options.suffix, 0, kMost);
  const int32_t suffix_min = options.suffix_min.value_or(options.suffix);
  check_range("suffix-min", suffix_min, 0, options.suffix);
  return cases::ragged_shape(options.batch, options.prefix, suffix_min, options.suffix, rng,
                             options.q_len);
}

void add_variants(const GenOptions& options, cases::Rng& rng, cases::Case& problem) {
  require(options.soft_cap >= 0 && std::isfinite(options.soft_cap),
          "soft-cap: got {}, want 0 (no cap) or a positive number", options.soft_cap);
  problem.spec.soft_cap = in_fp32("soft-cap", options.soft_cap);
  if (options.sinks) problem.sinks = cases::random_sinks(problem.spec.q_heads, rng);
  if (!options.draft_trees) return;
  require(options.q_len <= kMostTreeRows, "q-len: got {} beside draft-trees, want {} or less",
          options.q_len, kMostTreeRows);
  require(options.window == 0, "window: got {} beside draft-trees, want 0", options.window);
  problem.tree_mask = cases::random_trees(problem.tables, rng);
}

void check_memory(const char* what, double bytes) {
  const auto available = static_cast<double>(available_bytes());
  require(bytes < 0.8 * available, "shape: {} need {}, want less than 80 % of the {} that are free",
          what, term::bytes_text(bytes), term::bytes_text(available));
}

/// Refuses at once what would only turn out too large after its tables are made.
void check_size(const cases::ShapeSize& size, const AttentionSpec& spec) {
  const double q_bytes = static_cast<double>(size.q_rows) * spec.q_heads * spec.head_dim *
                         static_cast<double>(dtype_bytes(spec.dtype));
  const double kv_bytes = 2.0 * static_cast<double>(size.tokens) * spec.kv_heads * spec.head_dim *
                          static_cast<double>(dtype_bytes(spec.kv_dtype_or_default()));
  const double id_bytes = sizeof(int32_t) * static_cast<double>(size.page_ids);
  check_memory("q, K, V and page tables", q_bytes + kv_bytes + id_bytes);
}

cases::Case make_case(const GenOptions& options) {
  check_range("q-len", options.q_len, 0, 1 << 20);
  check_range("head-dim", options.head_dim, 1, 1 << 16);
  check_range("page-tokens", options.page_tokens, 1, 256);
  require((options.page_tokens & (options.page_tokens - 1)) == 0,
          "page-tokens: got {}, want a power of two", options.page_tokens);
  check_range("window", options.window, 0, std::numeric_limits<int32_t>::max());
  cases::Case problem;
  cases::Rng rng(cases::mix_seed(options.seed, 0));
  const cases::ForestShape shape = make_shape(options, rng, problem.spec);
  problem.name = !options.shape.empty()  ? options.shape
                 : !options.tree.empty() ? options.tree
                                         : "prefix";
  problem.spec.q_heads = options.q_heads.value_or(problem.spec.q_heads);
  problem.spec.kv_heads = options.kv_heads.value_or(problem.spec.kv_heads);
  check_range("q-heads", problem.spec.q_heads, 1, 1 << 16);
  check_range("kv-heads", problem.spec.kv_heads, 1, 1 << 16);
  require(problem.spec.q_heads % problem.spec.kv_heads == 0,
          "q-heads: got {}, want a multiple of kv-heads = {}", problem.spec.q_heads,
          problem.spec.kv_heads);
  problem.spec.head_dim = options.head_dim;
  problem.spec.dtype = dtype_from_name(options.dtype);
  problem.spec.kv_dtype = kv_dtype_from_name(options.kv_dtype);
  problem.spec.window = options.window;
  problem.spec.causal = !options.no_causal;
  const cases::TableOptions tables{.page_tokens = options.page_tokens};
  check_size(cases::size_of(shape, tables), problem.spec);
  problem.tables = cases::page_tables(shape, tables, rng);
  add_variants(options, rng, problem);
  problem.order = order_from_name(options.layout);
  const cases::DataOptions data{.kind = cases::data_kind_from_name(options.data),
                                .unused = parse_unused(options.unused),
                                .seed = options.seed};
  const double bytes = 2.0 * static_cast<double>(problem.kv_elements()) *
                       static_cast<double>(dtype_bytes(problem.kv_dtype()));
  check_memory("K and V", bytes);  // whole pages, half full as they may be
  cases::fill_data(problem, data);
  return problem;
}

}  // namespace

int run_gen(const GenOptions& options) {
  const cases::Case problem = make_case(options);
  cases::write_case(options.out, problem);
  const double bytes = static_cast<double>(problem.q.size() + problem.k.size() + problem.v.size());
  if (options.json) {
    const Json json = {{"file", options.out},
                       {"name", problem.name},
                       {"sequences", problem.tables.sequences()},
                       {"q_rows", problem.tables.q_rows()},
                       {"tokens", problem.tables.tokens()},
                       {"pages", problem.tables.num_pages},
                       {"page_tokens", problem.tables.page_tokens},
                       {"q_heads", problem.spec.q_heads},
                       {"kv_heads", problem.spec.kv_heads},
                       {"head_dim", problem.spec.head_dim},
                       {"dtype", dtype_name(problem.spec.dtype)},
                       {"kv_dtype", dtype_name(problem.kv_dtype())},
                       {"seed", options.seed}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("{}: {} sequences, {} tokens in {} pages, {}\n", options.out,
               problem.tables.sequences(), term::grouped(problem.tables.tokens()),
               term::grouped(problem.tables.num_pages), term::bytes_text(bytes));
  }
  return 0;
}

}  // namespace pando::cli
