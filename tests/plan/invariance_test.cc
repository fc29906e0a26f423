// Batch-invariant plans for CUDA: what the kernel adds up for a row of a sequence, and in which
// order, is the same whoever else is in the batch.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "forest/batch_literal.h"
#include "pando/plan.h"
#include "plan/coverage.h"
#include "plan/cuda_shapes.h"
#include "plan/schedule_trace.h"

namespace pando {
namespace {

using testing::OwnedBatch;
using testing::plan_problem;
using testing::ScheduleTracer;
using testing::Trace;

/// A sequence that joins batches.
struct Sequence {
  std::vector<int32_t> pages;
  int32_t kv_len = 0;
  int32_t q_len = 1;
  std::vector<VisibleRange> visible;  ///< of each of its rows, or nothing: the spec's rule
  std::vector<uint64_t> tree_mask;    ///< likewise
};

/// A batch of some sequences, and how it is planned.
struct Setting {
  int32_t page_tokens = 16;
  AttentionSpec spec;
  PlanOptions options{.sharing = Sharing::kAll, .batch_invariant = true, .cut_tokens = 256};
  int32_t workers = 132;
};

/// The traces of all rows and heads of sequence `which`, as a plan for the batch computes them.
/// `problem`: what is wrong with the plan.
std::vector<Trace> traces_of(const std::vector<Sequence>& batch, size_t which, Setting s,
                             std::string& problem) {
  OwnedBatch owned;
  owned.page_tokens = s.page_tokens;
  std::vector<VisibleRange> visible;
  std::vector<uint64_t> tree_mask;
  for (const Sequence& sequence : batch) {
    owned.pages.push_back(sequence.pages);
    owned.kv_len.push_back(sequence.kv_len);
    owned.q_len.push_back(sequence.q_len);
    visible.insert(visible.end(), sequence.visible.begin(), sequence.visible.end());
    tree_mask.insert(tree_mask.end(), sequence.tree_mask.begin(), sequence.tree_mask.end());
  }
  s.spec.visible = visible;
  s.spec.tree_mask = tree_mask;
  const BatchView view = owned.view();
  DeviceProfile profile = h100_profile();
  profile.workers = s.workers;
  const Plan p = plan(discover(view), s.spec, profile, s.options);
  problem = plan_problem(view, s.spec, p);
  const ScheduleTracer tracer(p);
  if (!tracer.is_complete()) problem += " a row is not written once";
  std::vector<Trace> traces;
  for (int32_t r = view.q_indptr[which]; r < view.q_indptr[which + 1]; ++r) {
    for (int32_t head = 0; head < s.spec.q_heads; ++head) traces.push_back(tracer.trace(r, head));
  }
  return traces;
}

/// The first row and head whose traces differ, and both traces; "" when there is none.
std::string difference(const std::vector<Trace>& a, const std::vector<Trace>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    return fmt::format("row and head {}:\n  {}\n  {}", i, fmt::join(a[i], " "),
                       fmt::join(b[i], " "));
  }
  return "";
}

void expect_same(const std::vector<Trace>& want, const std::vector<Sequence>& batch, size_t which,
                 const Setting& s) {
  std::string problem;
  const std::vector<Trace> got = traces_of(batch, which, s, problem);
  EXPECT_EQ(problem, "");
  EXPECT_EQ(difference(got, want), "");
}

Setting llama(int32_t cut_tokens = 512) {
  Setting s;
  s.spec.q_heads = 8;
  s.spec.kv_heads = 2;
  s.spec.head_dim = 128;
  s.options.cut_tokens = cut_tokens;
  return s;
}

/// `shared` tokens on pages that all such sequences hold, then pages of its own.
Sequence sequence_of(int32_t name, int32_t shared, int32_t kv_len, int32_t page_tokens = 16) {
  Sequence s;
  s.kv_len = kv_len;
  for (int32_t p = 0; p * page_tokens < kv_len; ++p) {
    s.pages.push_back(p * page_tokens < shared ? p : (name + 1) * 1000 + p);
  }
  return s;
}

/// Windows, and head_dims of which the kernel takes whole tiles or halves at once.
class Invariance : public ::testing::TestWithParam<std::tuple<int32_t, int32_t>> {
 protected:
  static int32_t window() { return std::get<0>(GetParam()); }
  static Setting setting() {
    Setting s = llama();
    s.spec.window = window();
    s.spec.head_dim = std::get<1>(GetParam());
    return s;
  }
};

TEST_P(Invariance, traces_are_the_same_alone_and_among_others) {
  for (const int32_t q_len : {1, 3, 70}) {
    Sequence own = sequence_of(0, 1000, 1234);
    own.q_len = q_len;
    std::string problem;
    const std::vector<Trace> alone = traces_of({own}, 0, setting(), problem);
    EXPECT_EQ(problem, "");
    for (const int32_t others : {6, 255}) {
      std::vector<Sequence> batch;
      for (int32_t i = 0; i < others; ++i) {
        batch.push_back(sequence_of(i + 1, i % 2 == 0 ? 1000 : 0, 900 + i % 50 * 7));
        batch.back().q_len = i % 5 == 0 ? 2 : 1;
      }
      for (const size_t at : {size_t{0}, batch.size() / 2, batch.size()}) {
        std::vector<Sequence> with = batch;
        with.insert(with.begin() + static_cast<int64_t>(at), own);
        expect_same(alone, with, at, setting());
      }
    }
  }
}

TEST_P(Invariance, traces_are_the_same_however_many_share_the_prefix) {
  const Sequence own = sequence_of(0, 1000, 1100);
  std::string problem;
  const std::vector<Trace> alone = traces_of({own}, 0, setting(), problem);
  for (const int32_t sharers : {0, 3, 100}) {
    std::vector<Sequence> batch;
    for (int32_t i = 0; i < 100; ++i) {
      batch.push_back(sequence_of(i + 1, i < sharers ? 1000 : 0, 1050 + i));
    }
    batch.push_back(own);
    for (const Sharing sharing : {Sharing::kAuto, Sharing::kNone, Sharing::kAll}) {
      Setting s = setting();
      s.options.sharing = sharing;
      expect_same(alone, batch, 100, s);
    }
  }
}

TEST_P(Invariance, traces_are_the_same_on_any_number_of_thread_blocks) {
  std::vector<Sequence> batch;
  for (int32_t i = 0; i < 40; ++i) batch.push_back(sequence_of(i, 700, 700 + 31 * i));
  std::string problem;
  const std::vector<Trace> want = traces_of(batch, 17, setting(), problem);
  for (const int32_t workers : {1, 3, 78, 1000}) {
    Setting s = setting();
    s.workers = workers;
    expect_same(want, batch, 17, s);
  }
}

TEST_P(Invariance, positions_come_in_ascending_order) {
  std::vector<Sequence> batch;
  for (int32_t i = 0; i < 40; ++i) batch.push_back(sequence_of(i, 700, 700 + 31 * i));
  for (size_t i = 0; i < batch.size(); ++i) {
    std::string problem;
    for (const Trace& trace : traces_of(batch, i, setting(), problem)) {
      const std::vector<int32_t> positions = ScheduleTracer::positions(trace);
      const int32_t kv_len = batch[i].kv_len;
      const int32_t begin = window() == 0 ? 0 : std::max(0, kv_len - window());
      ASSERT_EQ(positions.size(), static_cast<size_t>(kv_len - begin));
      for (size_t j = 0; j < positions.size(); ++j) {
        ASSERT_EQ(positions[j], begin + static_cast<int32_t>(j));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Invariance,
                         ::testing::Combine(::testing::Values(0, 1, 7, 100, 333),
                                            ::testing::Values(128, 256)),
                         [](const auto& info) {
                           return fmt::format("window{}_head_dim{}", std::get<0>(info.param),
                                              std::get<1>(info.param));
                         });

/// A few tokens wherever in a tile what comes before lets them begin, by themselves or among more
/// that another row sees of the same pages.
TEST_P(Invariance, traces_of_short_ranges_are_the_same_at_any_place_in_a_tile) {
  Setting s = setting();
  s.spec.window = 0;
  for (const VisibleRange sees : {VisibleRange{524, 529}, {570, 583}, {568, 576}}) {
    Sequence own = sequence_of(0, 768, 800);
    own.visible = {sees};
    Sequence sharer = sequence_of(20, 768, 800);
    sharer.visible = {{560, 600}};
    std::string problem;
    const std::vector<Trace> alone = traces_of({own}, 0, s, problem);
    EXPECT_EQ(problem, "");
    std::vector<Sequence> batch;
    for (int32_t others = 1; others <= 12; ++others) {
      batch.push_back(sequence_of(others, 0, 600));
      batch.back().visible = {{528, 536}};
      std::vector<Sequence> with = batch;
      with.push_back(own);
      expect_same(alone, with, batch.size(), s);
      with.push_back(sharer);
      expect_same(alone, with, batch.size(), s);
    }
  }
}

TEST(InvarianceOfDefault, interpreter_tells_traces_that_depend_on_others) {
  Setting s = llama();
  s.options.batch_invariant = false;
  const Sequence own = sequence_of(0, 1000, 1100);
  std::string problem;
  const std::vector<Trace> alone = traces_of({own}, 0, s, problem);
  EXPECT_EQ(problem, "");
  std::vector<Sequence> batch{own};
  for (int32_t i = 0; i < 30; ++i) batch.push_back(sequence_of(i + 1, 1000, 1050 + i));
  EXPECT_FALSE(traces_of(batch, 0, s, problem) == alone);
  EXPECT_EQ(problem, "");
}

TEST(InvariancePlan, explain_says_what_is_cut_and_shared) {
  OwnedBatch batch = OwnedBatch::of(std::vector<std::vector<int32_t>>(4, {0, 1, 2, 3, 4, 5, 6, 7}));
  Setting s = llama();
  const Plan p = plan(discover(batch.view()), s.spec, h100_profile(), s.options);
  EXPECT_EQ(p.header().cut_tokens, 512);
  EXPECT_NE(explain(p).find("batch-invariant: cuts at multiples of 512 tokens"), std::string::npos)
      << explain(p);
}

// --- any forest -------------------------------------------------------------------------------

/// A sequence that shares some first pages with `like`, and the rows of which see what they like.
enum class Rows { kSpec, kRanges, kTrees };
Sequence relative_of(const Sequence& like, int32_t page_tokens, int32_t name, Rows rows) {
  Sequence s;
  const auto pages = static_cast<int32_t>(like.pages.size());
  const int32_t common = *rc::gen::inRange(0, pages + 1);
  const int32_t more = *rc::gen::inRange(0, 400) / page_tokens;
  s.pages.assign(like.pages.begin(), like.pages.begin() + common);
  for (int32_t i = 0; i < more; ++i) s.pages.push_back((name + 1) * 100000 + i);
  const auto room = static_cast<int32_t>(s.pages.size()) * page_tokens;
  s.kv_len = *rc::gen::inRange(std::max(0, room - page_tokens), room + 1);
  if (*rc::gen::inRange(0, 6) == 0) s.kv_len = *rc::gen::inRange(0, room + 1);
  s.q_len = *rc::gen::element(0, 1, 1, 1, 1, 2, 5, 33);
  if (rows == Rows::kTrees) {
    for (int32_t r = 0; r < s.q_len; ++r) {
      s.tree_mask.push_back(*rc::gen::arbitrary<uint64_t>() & ((uint64_t{1} << s.q_len) - 1));
    }
  }
  if (rows != Rows::kRanges) return s;
  for (int32_t r = 0; r < s.q_len; ++r) {
    const int32_t begin = *rc::gen::inRange(-3, s.kv_len + 3);
    s.visible.push_back({begin, begin + *rc::gen::inRange(-3, s.kv_len + 3)});
  }
  return s;
}

RC_GTEST_PROP(InvarianceProperty, a_sequence_has_the_same_traces_in_any_batch, ()) {
  Setting s;
  s.page_tokens =
      *rc::gen::elementOf(std::vector<int32_t>(kCudaPageTokens.begin(), kCudaPageTokens.end()));
  s.spec.kv_heads = *rc::gen::inRange(1, 3);
  s.spec.q_heads = s.spec.kv_heads * *rc::gen::element(1, 1, 3, 4, 4, 7, 64);
  s.spec.head_dim = *rc::gen::element(64, 256);
  s.spec.causal = *rc::gen::arbitrary<bool>();
  s.spec.window = *rc::gen::element(0, 0, 1, 17, 200);
  s.options.cut_tokens = std::max(s.page_tokens, *rc::gen::element(128, 256, 512));
  const Rows rows = *rc::gen::element(Rows::kSpec, Rows::kRanges, Rows::kTrees);
  if (rows != Rows::kSpec) s.spec.window = 0;
  Sequence root;
  for (int32_t p = 0; p * s.page_tokens < 900; ++p) root.pages.push_back(p);
  Sequence own = relative_of(root, s.page_tokens, 0, rows);
  if (own.q_len == 0) return;
  std::string problem;
  s.options.sharing = *rc::gen::element(Sharing::kAuto, Sharing::kAll, Sharing::kNone);
  const std::vector<Trace> alone = traces_of({own}, 0, s, problem);
  RC_ASSERT(problem == "");
  for (int i = 0; i < 2; ++i) {
    std::vector<Sequence> batch;
    const int32_t others = *rc::gen::inRange(1, 12);
    for (int32_t b = 1; b <= others; ++b) {
      batch.push_back(
          relative_of(*rc::gen::arbitrary<bool>() ? own : root, s.page_tokens, b, rows));
    }
    const auto at = *rc::gen::inRange(0, others + 1);
    batch.insert(batch.begin() + at, own);
    s.options.sharing = *rc::gen::element(Sharing::kAuto, Sharing::kAll, Sharing::kNone);
    s.workers = *rc::gen::element(1, 2, 7, 78, 132);
    const std::vector<Trace> among = traces_of(batch, at, s, problem);
    RC_ASSERT(problem == "");
    RC_ASSERT(difference(among, alone) == "");
  }
}

}  // namespace
}  // namespace pando
