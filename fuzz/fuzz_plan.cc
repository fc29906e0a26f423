// Any batch, spec and options: discover, update and plan either refuse them with an Error or agree
// with the definitions of a forest and of a plan.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "cases/case.h"
#include "expect.h"
#include "fuzzed_batch.h"
#include "pando/error.h"
#include "pando/forest.h"
#include "pando/plan.h"
#include "plan/coverage.h"

namespace pando::fuzz {
namespace {

bool same_segment(const Segment& a, const Segment& b) {
  return a.parent == b.parent && a.depth == b.depth && a.token_begin == b.token_begin &&
         a.token_end == b.token_end && a.seq_begin == b.seq_begin &&
         a.seq_own_end == b.seq_own_end && a.seq_end == b.seq_end;
}

void expect_same_forest(const Forest& a, const Forest& b) {
  expect(std::ranges::equal(a.segments(), b.segments(), same_segment), "update finds the segments");
  expect(std::ranges::equal(a.order(), b.order()), "update finds the order");
  expect(std::ranges::equal(a.q_indptr(), b.q_indptr()), "update copies q_indptr");
  expect(std::ranges::equal(a.kv_len(), b.kv_len()), "update copies kv_len");
  expect(std::ranges::equal(a.page_indptr(), b.page_indptr()), "update copies page_indptr");
}

void expect_forest_of(const Forest& forest, const FuzzedBatch& batch) {
  cases::Tables tables;
  tables.q_indptr = batch.q_indptr;
  tables.kv_len = batch.kv_len;
  tables.page_indptr = batch.page_indptr;
  tables.page_ids = batch.page_ids;
  tables.page_tokens = batch.page_tokens;
  expect(cases::as_expected(forest) == cases::expected_forest(tables),
         "the forest is the one of the definition");
}

/// False when the batch was refused.
bool discover_checked(Forest& forest, const FuzzedBatch& batch) {
  try {
    forest.discover(batch.view());
  } catch (const Error& error) {
    expect(error.code == ErrorCode::kInvalidArgument, "a bad batch is an invalid argument");
    expect(forest.segments().empty() && forest.sequences() == 0, "a refused batch leaves nothing");
    return false;
  }
  expect_forest_of(forest, batch);
  return true;
}

void plan_checked(const Forest& forest, const FuzzedBatch& batch, const AttentionSpec& spec,
                  const DeviceProfile& profile, const PlanOptions& options) {
  Plan made;
  try {
    made = plan(forest, spec, profile, options);
  } catch (const Error& error) {
    expect(error.code == ErrorCode::kInvalidArgument || error.code == ErrorCode::kUnsupported,
           "a bad spec is an invalid argument or not supported");
    return;
  }
  const std::string problem = testing::plan_problem(batch.view(), spec, made);
  expect(problem.empty(), ("a plan is right, but " + problem).c_str());
  expect(!explain(made).empty(), "a plan explains itself");
  const Plan copy = Plan::from_bytes(made.bytes());
  expect(std::ranges::equal(copy.bytes(), made.bytes()), "a plan is its bytes");
}

void run(ByteReader in) {
  FuzzedBatch batch = take_batch(in);
  Forest forest;
  if (!discover_checked(forest, batch)) return;

  // A step of a serving loop.
  if (in.one_in(2)) {
    std::vector<int32_t> changed;
    FuzzedBatch next = take_next_batch(in, batch, changed);
    forest.update(next.view(), changed);
    expect_same_forest(forest, discover(next.view()));
    expect_forest_of(forest, next);
    batch = std::move(next);
  }
  // A few rows are as good as 2^31 of them, which are allowed and need gigabytes.
  if (forest.q_rows() > 4096) return;

  std::vector<VisibleRange> visible;
  std::vector<uint64_t> tree_mask;
  AttentionSpec spec = take_spec(in, forest.q_rows(), visible);
  const PlanOptions options = take_options(in);
  const int threads = in.in_range(0, 4);
  // So are packed rows: the checker keeps a number for each.
  if (spec.kv_heads > 0 && int64_t{forest.q_rows()} * spec.group() > 50'000) return;
  take_variants(in, forest.q_rows(), spec, tree_mask);
  take_kv_dtype(in, spec);
  plan_checked(forest, batch, spec, cpu_profile(threads), options);
  plan_checked(forest, batch, spec, h100_profile(), options);
}

}  // namespace
}  // namespace pando::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  pando::fuzz::run(pando::fuzz::ByteReader(data, size));
  return 0;
}
