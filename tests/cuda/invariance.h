// Batch-invariant attention, bit by bit: one sequence alone and among others, for a GPU and for the
// emulator.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cases/runner.h"
#include "cuda/device_test.h"

namespace pando::cases {

/// Whom sequence 0 may meet. Numbers of sequences of the whole batch and tokens.
struct Company {
  int32_t sharers = 100;    ///< that hold the prefix of sequence 0
  int32_t strangers = 155;  ///< that hold nothing of it
  int32_t prefix = 1000;
  int32_t own = 200;  ///< tokens of sequence 0 after the prefix
  int32_t cut_tokens = 512;
};

/// Sequence 0, then those who share its prefix, then the others. V of all pages that sequence 0
/// does not hold is huge: where the weight of such a token is not exactly 0, or leaves a sum other
/// than it was, it shows.
inline Case company_case(const Company& company, int32_t q_len, int32_t window, DType dtype,
                         int32_t head_dim) {
  ForestShape shape;
  const int32_t prefix = shape.add_node(-1, company.prefix);
  shape.add_sequence(shape.add_node(prefix, company.own), q_len);
  for (int32_t i = 0; i < company.sharers; ++i) {
    shape.add_sequence(shape.add_node(prefix, 1 + i * 37 % (2 * company.own)), i % 4 == 0 ? 3 : 1);
  }
  for (int32_t i = 0; i < company.strangers; ++i) {
    const int32_t tokens = 1 + i * 53 % (company.prefix + company.own);
    shape.add_sequence(shape.add_node(-1, tokens), i % 7 == 0 ? 2 : 1);
  }
  Case problem = device_case(shape);
  problem.spec.window = window;
  problem.spec.dtype = dtype;
  problem.spec.head_dim = head_dim;
  fill_data(problem, {.seed = 11});
  const Tables& tables = problem.tables;
  std::vector<bool> own(tables.num_pages);
  for (int32_t p = tables.page_indptr[0]; p < tables.page_indptr[1]; ++p) {
    own[tables.page_ids[p]] = true;
  }
  const int64_t page_elements = problem.kv_elements() / tables.num_pages;
  auto* const v = reinterpret_cast<uint16_t*>(problem.v.data());
  const uint16_t exponent = dtype == DType::kBF16 ? 0x7f80 : 0x7c00;
  const uint16_t huge = dtype == DType::kBF16 ? 227 << 7 : 29 << 10;  // 2^100, 2^14
  for (int64_t i = 0; i < problem.kv_elements(); ++i) {
    if (own[i / page_elements] || (v[i] & exponent) == exponent) continue;
    v[i] = static_cast<uint16_t>((v[i] & ~exponent) | huge);
  }
  return problem;
}

/// Sequence 0 has the same bits in every company, in any order, shared or not, every time.
inline void expect_invariant(Runner& runner, const Case& whole, const Company& company,
                             int thread_blocks) {
  RunOptions options;
  options.plan.batch_invariant = true;
  options.plan.cut_tokens = company.cut_tokens;
  const Output alone = runner.attend(subset(whole, {0}), options);
  const int32_t rows = whole.tables.q_indptr[1];
  const auto expect_same = [&](const std::vector<int32_t>& sequences, Sharing sharing, int blocks) {
    const Case batch = subset(whole, sequences);
    RunOptions among = options;
    among.plan.sharing = sharing;
    among.threads = blocks;
    const Output output = runner.attend(batch, among);
    EXPECT_EQ(output.overrun, "");
    const auto at = std::find(sequences.begin(), sequences.end(), 0) - sequences.begin();
    for (int32_t row = 0; row < rows; ++row) {
      EXPECT_TRUE(same_row_bits(whole, alone, row, output, batch.tables.q_indptr[at] + row))
          << "row " << row << " at " << at << " of " << sequences.size() << ", "
          << sharing_name(sharing);
    }
  };
  const auto batch_of = [&](int32_t sharers, int32_t strangers) {
    std::vector<int32_t> sequences{0};
    for (int32_t i = 0; i < sharers; ++i) sequences.push_back(1 + i);
    for (int32_t i = 0; i < strangers; ++i) sequences.push_back(1 + company.sharers + i);
    return sequences;
  };
  expect_same({0}, Sharing::kAuto, 0);  // a second time
  expect_same(batch_of(3, 3), Sharing::kAuto, 0);
  for (const int32_t sharers : {0, 3, company.sharers}) {
    std::vector<int32_t> sequences = batch_of(sharers, company.strangers);
    expect_same(sequences, Sharing::kAll, 0);
    std::reverse(sequences.begin(), sequences.end());
    expect_same(sequences, Sharing::kAuto, 0);
  }
  std::vector<int32_t> all = batch_of(company.sharers, company.strangers);
  expect_same(all, Sharing::kNone, 0);
  std::rotate(all.begin(), all.begin() + static_cast<int64_t>(all.size()) / 3, all.end());
  expect_same(all, Sharing::kAll, thread_blocks);
}

}  // namespace pando::cases
