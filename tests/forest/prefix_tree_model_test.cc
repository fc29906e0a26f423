// Random operations on a prefix tree and on the naive model, compared after every one.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>
#include <rapidcheck/state.h>

#include <cstdlib>
#include <optional>

#include "forest/prefix_model.h"
#include "pando/error.h"
#include "pando/prefix_tree.h"

namespace pando {
namespace {

/// A tree, its pool, and what a caller has written into the pages.
struct Sut {
  explicit Sut(const PrefixModel& model)
      : pool(model.num_pages, model.page_tokens), tree(std::in_place, pool) {}

  KvPool pool;
  std::optional<PrefixTree> tree;
  std::map<int, SequenceId> ids;                          // by the model's number
  std::map<int, int32_t> page_ids;                        // by the model's number
  std::map<int32_t, std::map<int32_t, int32_t>> written;  // page id -> slot -> token

  void write(int32_t page, int32_t slot, int32_t token) {
    if (slot == 0) written[page].clear();  // what an earlier use of the page left there is gone
    written[page][slot] = token;
  }

  /// Everything that can be seen of the tree agrees with the model.
  void check(const PrefixModel& model) {
    RC_ASSERT(tree->live_sequences() == static_cast<int32_t>(model.live.size()));
    RC_ASSERT(tree->cached_pages() == static_cast<int32_t>(model.cache.size()));
    RC_ASSERT(tree->evicted_pages() == model.evicted);
    RC_ASSERT(pool.free_pages() == model.free_pages());
    for (const auto& [number, sequence] : model.live) check_sequence(number, sequence);
    for (const auto& [path, cached] : model.cache) {
      RC_ASSERT(tree->match(path) == static_cast<int32_t>(path.size()));
    }
    std::set<int32_t> distinct;
    for (const auto& [number, references] : model.references()) {
      RC_ASSERT(pool.references(page_ids.at(number)) == references);
      RC_ASSERT(distinct.insert(page_ids.at(number)).second);
    }
  }

 private:
  void check_sequence(int number, const PrefixModel::Sequence& sequence) {
    const SequenceId id = ids.at(number);
    const std::span<const int32_t> pages = tree->pages(id);
    RC_ASSERT(tree->length(id) == static_cast<int32_t>(sequence.tokens.size()));
    RC_ASSERT(pages.size() == sequence.pages.size());
    for (size_t i = 0; i < pages.size(); ++i) {
      const auto [entry, first_seen] = page_ids.try_emplace(sequence.pages[i], pages[i]);
      RC_ASSERT(entry->second == pages[i]);
    }
    for (size_t i = 0; i < sequence.tokens.size(); ++i) {
      auto& page = written[pages[i / pool.page_tokens()]];
      const auto slot = static_cast<int32_t>(i % pool.page_tokens());
      RC_ASSERT(page.contains(slot));
      RC_ASSERT(page[slot] == sequence.tokens[i]);
    }
  }
};

using Command = rc::state::Command<PrefixModel, Sut>;

/// Runs `operation` and says whether pages sufficed.
template <typename Operation>
bool pages_sufficed(Operation&& operation) {
  try {
    operation();
    return true;
  } catch (const Error& error) {
    RC_ASSERT(error.code == ErrorCode::kOutOfPages);
    return false;
  }
}

Tokens any_tokens(int32_t longest) {
  return *rc::gen::resize(longest, rc::gen::container<Tokens>(rc::gen::inRange(0, 2)));
}

int any_live(const PrefixModel& model) {
  RC_PRE(!model.live.empty());
  const int nth = *rc::gen::inRange<int>(0, static_cast<int>(model.live.size()));
  return std::next(model.live.begin(), nth)->first;
}

struct Insert : Command {
  Tokens tokens;
  explicit Insert(const PrefixModel& model)
      : tokens(any_tokens(model.page_tokens * (model.num_pages + 1))) {
    // Random prompts seldom share more than a page; often go on from a page that is cached.
    if (!model.cache.empty() && *rc::gen::arbitrary<bool>()) {
      const int nth = *rc::gen::inRange<int>(0, static_cast<int>(model.cache.size()));
      const Tokens& prefix = std::next(model.cache.begin(), nth)->first;
      tokens.insert(tokens.begin(), prefix.begin(), prefix.end());
    }
  }
  void apply(PrefixModel& model) const override {
    PrefixModel next = model;
    if (next.insert(tokens)) model = next;
  }
  void run(const PrefixModel& before, Sut& sut) const override {
    PrefixModel after = before;
    const bool sufficed = after.insert(tokens);
    InsertResult result{};
    RC_ASSERT(sufficed == pages_sufficed([&] { result = sut.tree->insert(tokens); }));
    if (sufficed) {
      RC_ASSERT(result.cached_tokens == before.match(tokens));
      sut.ids[before.next_sequence] = result.sequence;
      const std::span<const int32_t> pages = sut.tree->pages(result.sequence);
      for (auto i = result.cached_tokens; i < static_cast<int32_t>(tokens.size()); ++i) {
        sut.write(pages[i / before.page_tokens], i % before.page_tokens, tokens[i]);
      }
    }
    sut.check(sufficed ? after : before);
  }
  void show(std::ostream& os) const override { os << "insert " << rc::toString(tokens); }
};

struct Fork : Command {
  int sequence;
  explicit Fork(const PrefixModel& model) : sequence(any_live(model)) {}
  void checkPreconditions(const PrefixModel& model) const override {
    RC_PRE(model.live.contains(sequence));
  }
  void apply(PrefixModel& model) const override { model.fork(sequence); }
  void run(const PrefixModel& before, Sut& sut) const override {
    sut.ids[before.next_sequence] = sut.tree->fork(sut.ids.at(sequence));
    sut.check(nextState(before));
  }
  void show(std::ostream& os) const override { os << "fork " << sequence; }
};

struct Append : Command {
  int sequence;
  Tokens tokens;
  explicit Append(const PrefixModel& model)
      : sequence(any_live(model)), tokens(any_tokens(2 * model.page_tokens)) {}
  void checkPreconditions(const PrefixModel& model) const override {
    RC_PRE(model.live.contains(sequence));
  }
  void apply(PrefixModel& model) const override {
    for (const int32_t token : tokens) {
      PrefixModel next = model;
      if (next.append(sequence, token)) model = next;
    }
  }
  void run(const PrefixModel& before, Sut& sut) const override {
    PrefixModel model = before;
    for (const int32_t token : tokens) append(token, model, sut);
  }
  void append(int32_t token, PrefixModel& model, Sut& sut) const {
    PrefixModel after = model;
    const bool sufficed = after.append(sequence, token);
    AppendResult result{};
    RC_ASSERT(sufficed ==
              pages_sufficed([&] { result = sut.tree->append(sut.ids.at(sequence), token); }));
    if (sufficed) {
      const auto length = static_cast<int32_t>(model.live.at(sequence).tokens.size());
      RC_ASSERT(result.slot == length % model.page_tokens);
      if (result.copy) {
        RC_ASSERT(result.copy->to == result.page);
        for (int32_t slot = 0; slot < result.copy->tokens; ++slot) {
          sut.write(result.page, slot, sut.written.at(result.copy->from).at(slot));
        }
      }
      sut.write(result.page, result.slot, token);
      model = after;
    }
    sut.check(model);
  }
  void show(std::ostream& os) const override {
    os << "append " << sequence << " " << rc::toString(tokens);
  }
};

struct Release : Command {
  int sequence;
  explicit Release(const PrefixModel& model) : sequence(any_live(model)) {}
  void checkPreconditions(const PrefixModel& model) const override {
    RC_PRE(model.live.contains(sequence));
  }
  void apply(PrefixModel& model) const override { model.release(sequence); }
  void run(const PrefixModel& before, Sut& sut) const override {
    sut.tree->release(sut.ids.at(sequence));
    sut.check(nextState(before));
  }
  void show(std::ostream& os) const override { os << "release " << sequence; }
};

struct Evict : Command {
  int32_t pages = *rc::gen::inRange(0, 4);
  void apply(PrefixModel& model) const override { model.evict(pages); }
  void run(const PrefixModel& before, Sut& sut) const override {
    PrefixModel after = before;
    RC_ASSERT(sut.tree->evict(pages) == after.evict(pages));
    sut.check(after);
  }
  void show(std::ostream& os) const override { os << "evict " << pages; }
};

struct Match : Command {
  Tokens tokens;
  explicit Match(const PrefixModel& model)
      : tokens(any_tokens(model.page_tokens * model.num_pages)) {}
  void run(const PrefixModel& before, Sut& sut) const override {
    RC_ASSERT(sut.tree->match(tokens) == before.match(tokens));
    sut.check(before);
  }
  void show(std::ostream& os) const override { os << "match " << rc::toString(tokens); }
};

// Rare interleavings need more cases than the default 100; RC_PARAMS in the environment prevails.
[[maybe_unused]] const int kCases = setenv("RC_PARAMS", "max_success=1000", /*overwrite=*/0);

RC_GTEST_PROP(PrefixTree, agrees_with_the_naive_model, ()) {
  PrefixModel model;
  model.num_pages = *rc::gen::inRange(1, 16);
  model.page_tokens = *rc::gen::element(1, 2, 4);
  Sut sut(model);
  rc::state::check(model, sut,
                   rc::state::gen::execOneOfWithArgs<Insert, Fork, Append, Append, Append, Release,
                                                     Evict, Match>());
  sut.tree.reset();
  RC_ASSERT(sut.pool.free_pages() == model.num_pages);
}

}  // namespace
}  // namespace pando
