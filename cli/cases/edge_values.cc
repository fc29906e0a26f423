// Rows of the edges suite that are about values: empties, NaN, large logits, zeros, duplicates.
#include <cmath>
#include <cstring>
#include <limits>

#include "cases/edges.h"
#include "core/check.h"
#include "core/convert.h"
#include "pando/merge.h"

namespace pando::cases {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Row 1: merging with empties, whatever the empty side's o holds.
Outcome merge_empties(Runner&) {
  Outcome outcome;
  for (const float garbage : {0.0f, 1.0f, kNan, kInf, -kInf}) {
    for (const int32_t head_dim : {1, 8, 127, 128}) {
      const std::vector<float> value(head_dim, 2.0f);
      std::vector<float> a(head_dim, garbage);
      const std::vector<float> b(head_dim, garbage);
      float lse = -kInf;
      merge_into(a.data(), &lse, b.data(), -kInf, head_dim);
      outcome.expect(lse == -kInf && a == std::vector<float>(head_dim, 0.0f),
                     "two empties do not merge to (0, -inf)");
      merge_into(a.data(), &lse, value.data(), 3.0f, head_dim);
      outcome.expect(lse == 3.0f && a == value, "an empty changes what is merged into it");
      merge_into(a.data(), &lse, b.data(), -kInf, head_dim);
      outcome.expect(lse == 3.0f && a == value, "merging an empty changes the result");
    }
  }
  outcome.runs = 1;
  return outcome;
}

void set_all(Buffer& buffer, DType dtype, float value) {
  const int64_t count = static_cast<int64_t>(buffer.size()) / dtype_bytes(dtype);
  for (int64_t i = 0; i < count; ++i) store_element(buffer.data(), i, dtype, value);
}

/// Row 3: equal logits so negative that exp of any of them alone is 0.
Outcome large_negative_logits(const Kind& kind, Runner& runner) {
  Outcome outcome;
  for (const int32_t keys : {1, 2, 3, 129}) {
    Case problem = edge_case(kind, edge_tables(prefix_shape(3, 0, keys)), 4, 2);
    fill_data(problem, {});
    set_all(problem.q, kind.dtype, 64);
    set_all(problem.k, problem.kv_dtype(), -64);
    set_all(problem.v, problem.kv_dtype(), 1);
    if (!problem.k_scale.empty()) problem.k_scale = problem.v_scale = {1.0f};
    fill_unused(problem, Unused::kMixed);
    const double score = -64.0 * 64.0 * 128.0 * problem.spec.scale_or_default();
    const double lse = score + std::log(keys);
    for (const RunOptions& options : all_modes()) {
      const Output output = runner.attend(problem, options);
      ++outcome.runs;
      for (int64_t i = 0; i < 3 * 4 * 128; ++i) {
        outcome.expect(load_element(output.out.data(), i, kind.dtype) == 1.0f,
                       fmt::format("{}: {} keys: out is not exactly 1", run_name(options), keys));
      }
      for (const float got : output.lse) {
        outcome.expect(
            std::fabs(got - lse) <= std::fabs(lse) * 0x1p-20,
            fmt::format("{}: {} keys: lse is {}, want {}", run_name(options), keys, got, lse));
      }
    }
  }
  return outcome;
}

/// Row 6: what lies past the end of a sequence must not change a bit.
Outcome garbage_past_the_end(const Kind& kind, Runner& runner) {
  Outcome outcome;
  for (const int32_t page_tokens : {1, 4, 16, 64, 256}) {
    ForestShape shape;
    for (const int32_t tokens : {1, 12, 13, 14, 65, 257})
      shape.add_sequence(shape.add_node(-1, tokens));
    const int32_t prefix = shape.add_node(-1, 2 * page_tokens);
    for (const int32_t tokens : {0, 1, 13}) {
      shape.add_sequence(tokens == 0 ? prefix : shape.add_node(prefix, tokens), 2);
    }
    Case problem = edge_case(kind, edge_tables(shape, page_tokens), 8, 2);
    fill_data(problem, {.seed = 6});
    const Outcome verified = verify_case(problem, all_modes(), runner);
    outcome.absorb(verified);
    if (verified.status == Status::kSkipped) continue;
    for (const RunOptions& options : all_modes()) {
      fill_unused(problem, Unused::kZero);
      const Output clean = runner.attend(problem, options);
      for (const Unused garbage :
           {Unused::kNan, Unused::kInf, Unused::kNegativeInf, Unused::kMixed}) {
        fill_unused(problem, garbage);
        ++outcome.runs;
        outcome.expect(same_bits(problem, clean, runner.attend(problem, options)),
                       fmt::format("{}: pages of {}: bits depend on unused slots",
                                   run_name(options), page_tokens));
      }
    }
  }
  return outcome;
}

/// Sets the elements of a token of a page to `value`, in K and V, at every head.
void set_token(Case& problem, int64_t page, int32_t slot, float value) {
  const KvLayout kv = problem.kv();
  for (int32_t head = 0; head < kv.kv_heads; ++head) {
    for (int32_t d = 0; d < kv.head_dim; ++d) {
      store_element(problem.k.data(), kv.offset(page, head, slot) + d, problem.kv_dtype(), value);
      store_element(problem.v.data(), kv.offset(page, head, slot) + d, problem.kv_dtype(), value);
    }
  }
}

/// Row 6: the same when the tokens past the end belong to others who share the page and see them.
Outcome garbage_that_others_see(const Kind& kind, Runner& runner) {
  if (runner.backend() == Backend::kCuda) {
    return Outcome::skipped("rows that share a tensor core tile share its V: 0 x NaN is NaN");
  }
  Outcome outcome;
  for (const int32_t page_tokens : {4, 16, 64}) {
    for (const int32_t q_len : {1, 40}) {
      ForestShape shape;
      shape.add_node(-1, 4 * page_tokens);
      for (int s = 0; s < 3; ++s) shape.add_sequence(0, q_len);
      Case problem = edge_case(kind, edge_tables(shape, page_tokens), 8, 2);
      problem.tables.kv_len[0] -= 3;
      fill_data(problem, {.seed = 6});
      const int32_t last_page = problem.tables.page_ids[3];
      for (const RunOptions& options : all_modes()) {
        const auto attend_with = [&](float value) {
          for (int32_t i = 1; i <= 3; ++i) set_token(problem, last_page, page_tokens - i, value);
          return runner.attend(problem, options);
        };
        const Output clean = attend_with(0);
        for (const float garbage : {kNan, kInf, -kInf}) {
          const Output output = attend_with(garbage);
          ++outcome.runs;
          for (int32_t row = 0; row < q_len; ++row) {
            outcome.expect(same_row_bits(problem, clean, row, output, row),
                           fmt::format("{}: pages of {}, {} rows: bits depend on others' tokens",
                                       run_name(options), page_tokens, q_len));
          }
        }
      }
    }
  }
  return outcome;
}

/// Row 7: zero queries weigh all tokens alike.
Outcome zero_queries(const Kind& kind, Runner& runner) {
  ForestShape shape;
  const std::vector<int32_t> lengths = {15, 16, 17, 63, 64, 65};
  for (const int32_t tokens : lengths) shape.add_sequence(shape.add_node(-1, tokens));
  Case problem = edge_case(kind, edge_tables(shape), 8, 8);
  fill_data(problem, {.seed = 7});
  set_all(problem.q, kind.dtype, 0);
  Outcome outcome = verify_case(problem, all_modes(), runner);
  if (outcome.status == Status::kSkipped) return outcome;
  const Output output = runner.attend(problem, {});
  for (size_t s = 0; s < lengths.size(); ++s) {
    const double want = std::log(lengths[s]);
    for (int32_t head = 0; head < 8; ++head) {
      outcome.expect(std::fabs(output.lse[s * 8 + head] - want) < 1e-5,
                     fmt::format("{} tokens: lse is not ln(length)", lengths[s]));
    }
  }
  return outcome;
}

/// Gives query row `to` the elements of row `from`.
void copy_query(Case& problem, int32_t from, int32_t to) {
  const int64_t bytes = dtype_bytes(problem.spec.dtype);
  const int64_t row_bytes = int64_t{problem.spec.q_heads} * problem.spec.head_dim * bytes;
  std::memcpy(problem.q.data() + to * row_bytes, problem.q.data() + from * row_bytes, row_bytes);
}

/// Sequences of one row each that fall into kinds: `kind_of[s]` is the first sequence of its kind.
Outcome verify_duplicates(Case& problem, const std::vector<int32_t>& kind_of, Runner& runner) {
  fill_data(problem, {.seed = 10});
  for (size_t s = 0; s < kind_of.size(); ++s)
    copy_query(problem, kind_of[s], static_cast<int32_t>(s));
  Outcome outcome = verify_case(problem, all_modes(), runner, 1 << 24);
  // On CUDA duplicates may lie in different tiles, whose tokens are cut at different places.
  if (runner.backend() == Backend::kCuda) return outcome;
  for (const RunOptions& options : all_modes()) {
    const Output output = runner.attend(problem, options);
    for (size_t s = 0; s < kind_of.size(); ++s) {
      outcome.expect(same_row_bits(problem, output, static_cast<int32_t>(s), output, kind_of[s]),
                     fmt::format("{}: sequence {} differs from its duplicate {}", run_name(options),
                                 s, kind_of[s]));
    }
  }
  return outcome;
}

/// Row 10: identical sequences get identical bits, on the same pages.
Outcome duplicates(const Kind& kind, Runner& runner) {
  Outcome outcome;
  for (const int32_t count : {127, 128, 129}) {
    ForestShape shape;
    const int32_t node = shape.add_node(-1, 333);
    for (int32_t s = 0; s < count; ++s) shape.add_sequence(node);
    Case problem = edge_case(kind, edge_tables(shape), 5, 1);
    outcome.absorb(verify_duplicates(problem, std::vector<int32_t>(count, 0), runner));
  }
  ForestShape shape;  // 32 of one kind and 18 of another, mixed, on a common prefix
  const int32_t prefix = shape.add_node(-1, 96);
  const std::vector<int32_t> nodes = {shape.add_node(prefix, 200), shape.add_node(prefix, 45)};
  std::vector<int32_t> kind_of;
  for (int32_t s = 0; s < 50; ++s) {
    const int32_t which = s % 3 == 1 || s >= 48 ? 1 : 0;
    shape.add_sequence(nodes[which]);
    kind_of.push_back(which);  // the first of kind 0 is sequence 0, of kind 1 sequence 1
  }
  Case problem = edge_case(kind, edge_tables(shape), 8, 2);
  outcome.absorb(verify_duplicates(problem, kind_of, runner));
  return outcome;
}

}  // namespace

std::vector<SuiteCase> edge_values(const SuiteOptions& options) {
  std::vector<SuiteCase> cases = {{"edges", "1-merging-empties", merge_empties}};
  add_kinds(cases, "3-large-negative-logits", options, large_negative_logits);
  add_kinds(cases, "6-garbage-past-the-end", options, garbage_past_the_end);
  add_kinds(cases, "6-garbage-that-others-see", options, garbage_that_others_see);
  add_kinds(cases, "7-zero-queries", options, zero_queries);
  add_kinds(cases, "10-duplicates", options, duplicates);
  return cases;
}

}  // namespace pando::cases
