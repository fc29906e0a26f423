// Rows of the edges suite that are about shapes: empties, odd tails, nesting, many sequences,
// ratios.
#include <algorithm>

#include "cases/edges.h"
#include "core/check.h"

namespace pando::cases {
namespace {

/// A sequence of `kv` tokens, of which the first `prefix` are those of node `root`.
void add_tail(ForestShape& shape, int32_t root, int32_t prefix, int32_t kv, int32_t q_len) {
  shape.add_sequence(kv > prefix ? shape.add_node(root, kv - prefix) : root, q_len);
}

/// Row 2: rows without kv, kv without rows, and a batch without any kv.
Outcome zero_rows(const Kind& kind, Runner& runner) {
  Outcome outcome;
  for (const int32_t kv : {3, 4, 5}) {
    ForestShape shape;
    shape.add_sequence(-1, 2);
    shape.add_sequence(shape.add_node(-1, kv), 131);
    shape.add_sequence(shape.add_node(-1, kv), 1);
    shape.add_sequence(shape.add_node(-1, kv), 0);
    outcome.absorb(verify_edge(edge_case(kind, edge_tables(shape), 4, 2), runner));
  }
  ForestShape no_kv;
  for (int s = 0; s < 16; ++s) no_kv.add_sequence(-1);
  outcome.absorb(verify_edge(edge_case(kind, edge_tables(no_kv), 16, 1), runner));
  outcome.absorb(verify_edge(edge_case(kind, edge_tables({}), 16, 1), runner));
  return outcome;
}

/// Row 4: a causal mask aligned at the end leaves most rows with nothing to see.
Outcome rows_that_see_nothing(const Kind& kind, Runner& runner) {
  Outcome outcome;
  for (const int32_t rows : {33, 34, 35}) {
    for (const int32_t kv : {1, 2}) {
      ForestShape shape;
      shape.add_sequence(shape.add_node(-1, kv), rows);
      outcome.absorb(verify_edge(edge_case(kind, edge_tables(shape), 32, 8), runner));
    }
  }
  return outcome;
}

/// Row 5: with two rows and a causal mask the last split of 129 tokens is empty for the first row.
Outcome empty_splits(const Kind& kind, Runner& runner) {
  Outcome outcome;
  for (const int32_t kv : {128, 129, 130, 513}) {
    ForestShape shape;
    shape.add_sequence(shape.add_node(-1, kv), 2);
    Case problem = edge_case(kind, edge_tables(shape), 8, 2);
    fill_data(problem, {.seed = 5});
    std::vector<RunOptions> runs;
    for (int threads = 1; threads <= 8; ++threads) {
      const std::vector<RunOptions> modes = all_modes(threads);
      runs.insert(runs.end(), modes.begin(), modes.end());
    }
    outcome.absorb(verify_case(problem, runs, runner));
  }
  return outcome;
}

/// Row 8: a prefix of the whole batch, and tails of odd lengths with many or few query rows.
Outcome odd_tails(const Kind& kind, Runner& runner, bool quick) {
  struct Tail {
    int32_t q_len, kv;
  };
  Outcome outcome;
  const int32_t head_dim = runner.least_head_dim(64);
  const std::vector<Tail> chunked = {{129, 871}, {18, 280}, {37, 988}, {1023, 2304}, {1, 257}};
  const std::vector<Tail> decode = {{1, 1023}, {1, 879}, {1, 778}, {1, 1777}};
  for (const auto& [q_heads, kv_heads] : {std::pair{4, 4}, {8, 2}, {16, 2}}) {
    ForestShape long_rows;
    long_rows.add_node(-1, 256);
    for (const Tail& tail : chunked) add_tail(long_rows, 0, 256, tail.kv, tail.q_len);
    outcome.absorb(
        verify_edge(edge_case(kind, edge_tables(long_rows), q_heads, kv_heads, head_dim), runner));
    ForestShape many;
    many.add_node(-1, 512);
    for (int repeat = 0; repeat < (quick ? 10 : 100); ++repeat) {
      for (const Tail& tail : decode) add_tail(many, 0, 512, tail.kv, tail.q_len);
    }
    outcome.absorb(
        verify_edge(edge_case(kind, edge_tables(many), q_heads, kv_heads, head_dim), runner));
  }
  // Of each two blocks of 64 rows, 16 sequences each, one has many own tokens and the other few.
  ForestShape uneven;
  uneven.add_node(-1, 4096);
  for (int32_t s = 0; s < 64; ++s) add_tail(uneven, 0, 4096, 4096 + (s & 16 ? 1500 : 63), 1);
  outcome.absorb(verify_edge(edge_case(kind, edge_tables(uneven), 8, 2, head_dim), runner));
  return outcome;
}

/// One level after another, each with its own lengths, spread evenly over the level above.
ForestShape levels(const std::vector<std::vector<int32_t>>& lengths) {
  ForestShape shape;
  int32_t above_begin = -1;
  int64_t above = 1;
  for (const auto& level : lengths) {
    const auto begin = static_cast<int32_t>(shape.nodes.size());
    const auto count = static_cast<int64_t>(level.size());
    for (int64_t i = 0; i < count; ++i) {
      const int32_t parent =
          above_begin < 0 ? -1 : above_begin + static_cast<int32_t>(i * above / count);
      shape.add_node(parent, level[i]);
    }
    above_begin = begin;
    above = count;
  }
  for (int64_t i = 0; i < above; ++i) shape.add_sequence(above_begin + static_cast<int32_t>(i));
  return shape;
}

/// Row 9: nested levels of lengths that fill no page.
Outcome nested_levels(const Kind& kind, Runner& runner) {
  Outcome outcome;
  for (const int32_t kv_heads : {1, 8}) {
    for (const int32_t page_tokens : {1, 4, 16}) {
      const ForestShape small = levels({{7, 7}, {9, 10, 11, 4}, {129, 2, 3, 4, 5, 6, 7, 128}});
      outcome.absorb(
          verify_edge(edge_case(kind, edge_tables(small, page_tokens), 8, kv_heads), runner));
    }
    const ForestShape large = levels({{16384}, {1, 128, 256}});
    outcome.absorb(verify_edge(
        edge_case(kind, edge_tables(large), 8, kv_heads, runner.least_head_dim(64)), runner));
  }
  return outcome;
}

/// Row 11: sequences that own nothing beyond the prefix must cause no empty work.
Outcome nothing_but_prefix(const Kind& kind, Runner& runner) {
  Outcome outcome;
  for (const int32_t q_len : {1, 4}) {
    for (const int32_t kv : {255, 256, 257}) {
      ForestShape shape;
      shape.add_node(-1, kv);
      for (int s = 0; s < 8; ++s) shape.add_sequence(0, q_len);
      Case problem = edge_case(kind, edge_tables(shape), 8, 2);
      fill_data(problem, {.seed = 11});
      outcome.absorb(verify_case(problem, all_modes(), runner));
      if (outcome.status != Status::kPassed) return outcome;
      for (const RunOptions& options : all_modes()) {
        runner.attend(problem, options);
        outcome.expect(runner.forest().segments().size() == 1, "more than one segment");
        for (const WorkItem& item : runner.plan().items()) {
          outcome.expect(item.token_begin < item.token_end && item.packed_begin < item.packed_end,
                         run_name(options) + ": an empty work item");
        }
      }
    }
  }
  return outcome;
}

/// Row 12: more sequences than 16 bits count.
Outcome many_sequences(const Kind& kind, Runner& runner, bool quick) {
  Outcome outcome;
  struct Size {
    int32_t sequences, tokens;
  };
  std::vector<Size> sizes = {{65535, 1}, {65536, 1}, {80000, 16}};
  if (quick) sizes = {{65536, 1}};
  for (const Size& size : sizes) {
    Case problem = edge_case(kind, edge_tables(prefix_shape(size.sequences, 0, size.tokens)), 1, 1,
                             runner.least_head_dim(16));
    fill_data(problem, {.seed = 12});
    outcome.absorb(verify_case(problem, {{}}, runner));
  }
  return outcome;
}

/// Row 13: every ratio of heads up to 128.
Outcome head_ratios(const Kind& kind, Runner& runner, bool quick) {
  Outcome outcome;
  const auto check = [&](int32_t q_heads, int32_t kv_heads) {
    const ForestShape shape = prefix_shape(3, 32, 5);
    outcome.absorb(verify_edge(
        edge_case(kind, edge_tables(shape), q_heads, kv_heads, runner.least_head_dim(64)), runner));
  };
  check(24, 4);
  check(64, 4);
  check(32, 2);
  check(14, 2);
  for (int32_t group = 1; group <= 128; group += quick ? 13 : 1) check(group, 1);
  return outcome;
}

}  // namespace

std::vector<SuiteCase> edge_shapes(const SuiteOptions& options) {
  const bool quick = options.quick;
  const auto sized = [quick](Outcome (*run)(const Kind&, Runner&, bool)) {
    return [=](const Kind& kind, Runner& runner) { return run(kind, runner, quick); };
  };
  std::vector<SuiteCase> cases;
  add_kinds(cases, "2-zero-rows-zero-kv", options, zero_rows);
  add_kinds(cases, "4-rows-that-see-nothing", options, rows_that_see_nothing);
  add_kinds(cases, "5-empty-splits", options, empty_splits);
  add_kinds(cases, "8-odd-tails", options, sized(odd_tails));
  add_kinds(cases, "9-nested-levels", options, nested_levels);
  add_kinds(cases, "11-nothing-but-prefix", options, nothing_but_prefix);
  add_kinds(cases, "12-many-sequences", options, sized(many_sequences));
  add_kinds(cases, "13-head-ratios", options, sized(head_ratios));
  return cases;
}

}  // namespace pando::cases
