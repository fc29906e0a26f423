#include "replay/scheduler.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "replay/tokens.h"

namespace pando::replay {

Scheduler::Scheduler(const Trace& trace, const ReplayOptions& options, KvMemory& memory)
    : trace_(trace),
      options_(options),
      memory_(memory),
      pool_(static_cast<int32_t>(options.num_pages()), options.page_tokens),
      tree_(pool_) {
  for (const Request& request : trace) {
    const int64_t pages = pages_needed(request);
    if (pages > pool_.num_pages()) continue;
    table_width_ = std::max(table_width_, static_cast<int32_t>(pages));
  }
  const int64_t width = table_width_;
  require(width * options.slots <= std::numeric_limits<int32_t>::max(),
          "slots: got {}, want at most {} for page tables of {} pages", options.slots,
          std::numeric_limits<int32_t>::max() / width, width);
  page_ids_.resize(width * options.slots);
  q_indptr_.resize(options.slots + 1);
  std::iota(q_indptr_.begin(), q_indptr_.end(), 0);
  for (int32_t slot = 0; slot <= options.slots; ++slot) page_indptr_.push_back(slot * table_width_);
  kv_len_.resize(options.slots);
}

int64_t Scheduler::pages_needed(const Request& request) const {
  const int64_t tokens =
      scaled_prompt(request, options_.scale) + scaled_answer(request, options_.scale);
  return (tokens + options_.page_tokens - 1) / options_.page_tokens;
}

bool Scheduler::step() {
  end_finished();
  admit_all();
  append_all();
  note_changes();
  clock_ms_ += options_.step_ms;
  return live() > 0;
}

BatchView Scheduler::batch() const {
  const auto sequences = static_cast<size_t>(live());
  return {.q_indptr = std::span(q_indptr_).first(sequences + 1),
          .kv_len = std::span(kv_len_).first(sequences),
          .page_indptr = std::span(page_indptr_).first(sequences + 1),
          .page_ids = page_ids_,
          .page_tokens = options_.page_tokens};
}

Counts Scheduler::counts() const {
  Counts counts = counts_;
  counts.evicted_pages = tree_.evicted_pages();
  return counts;
}

void Scheduler::end_finished() {
  for (int32_t slot = live() - 1; slot >= 0; --slot) {
    if (live_[slot].answered < live_[slot].wanted) continue;
    tree_.release(live_[slot].id);
    remove(slot);
    ++counts_.finished;
    admission_paused_ = false;
  }
}

void Scheduler::remove(int32_t slot) {
  const int32_t last = live() - 1;
  if (slot != last) {
    live_[slot] = live_[last];
    kv_len_[slot] = kv_len_[last];
    std::copy_n(table(last), table_width_, table(slot));
  }
  live_.pop_back();
}

void Scheduler::admit_all() {
  if (live() == 0) admission_paused_ = false;
  while (!admission_paused_) {
    const std::optional<Waiting> waiting = next_waiting();
    if (!waiting || !admit(*waiting)) break;
    if (preempted_.empty()) {
      ++next_request_;
    } else {
      preempted_.pop_front();
    }
  }
}

/// The one whose turn it is; skips requests that can never be admitted.
std::optional<Scheduler::Waiting> Scheduler::next_waiting() {
  if (!preempted_.empty()) return preempted_.front();
  for (; next_request_ < static_cast<int64_t>(trace_.size()); ++next_request_) {
    const Request& request = trace_[next_request_];
    if (pages_needed(request) > pool_.num_pages()) {
      ++counts_.refused;
      continue;
    }
    if (options_.step_ms > 0) {
      const auto arrival_ms = static_cast<double>(request.timestamp_ms);
      if (live() == 0) clock_ms_ = std::max(clock_ms_, arrival_ms);
      if (arrival_ms > clock_ms_) return std::nullopt;
    }
    return Waiting{next_request_, 0, options_.samples, 0};
  }
  return std::nullopt;
}

bool Scheduler::admit(const Waiting& waiting) {
  if (live() + waiting.samples > options_.slots) return false;
  std::vector<int32_t> tokens = prompt_tokens(trace_[waiting.request], options_.scale);
  for (int64_t i = 0; i < waiting.answered; ++i) {
    tokens.push_back(answer_token(options_.seed, waiting.request, waiting.sample, i));
  }
  InsertResult inserted{};
  try {
    inserted = tree_.insert(tokens);
  } catch (const Error& error) {
    if (error.code != ErrorCode::kOutOfPages) throw;
    return false;
  }
  const auto length = static_cast<int32_t>(tokens.size());
  const std::span<const int32_t> pages = tree_.pages(inserted.sequence);
  for (int32_t i = inserted.cached_tokens; i < length; ++i) {
    memory_.fill(pages[i / options_.page_tokens], i % options_.page_tokens);
  }
  counts_.prompt_tokens += length;
  counts_.cached_tokens += inserted.cached_tokens;
  start(inserted.sequence, waiting, waiting.sample);
  for (int32_t i = 1; i < waiting.samples; ++i) {
    start(tree_.fork(inserted.sequence), waiting, waiting.sample + i);
  }
  return true;
}

void Scheduler::start(SequenceId id, const Waiting& waiting, int32_t sample) {
  const int32_t slot = live();
  live_.push_back({.id = id,
                   .request = waiting.request,
                   .sample = sample,
                   .answered = waiting.answered,
                   .wanted = scaled_answer(trace_[waiting.request], options_.scale),
                   .admission = counts_.admitted++});
  kv_len_[slot] = tree_.length(id);
  std::ranges::copy(tree_.pages(id), table(slot));
}

/// Oldest first, so that the youngest can be preempted before it has got a token in this step.
void Scheduler::append_all() {
  std::vector<int32_t> by_age(live_.size());
  std::iota(by_age.begin(), by_age.end(), 0);
  std::ranges::sort(by_age, {}, [&](int32_t slot) { return live_[slot].admission; });
  std::vector<int32_t> removed;
  for (size_t i = 0; i < by_age.size(); ++i) {
    while (i < by_age.size() && !append(live_[by_age[i]])) {
      preempt(live_[by_age.back()]);
      removed.push_back(by_age.back());
      by_age.pop_back();
    }
  }
  std::ranges::sort(removed, std::greater{});
  for (const int32_t slot : removed) remove(slot);
}

/// False when no page can be had.
bool Scheduler::append(Live& live) {
  AppendResult result{};
  try {
    result = tree_.append(live.id,
                          answer_token(options_.seed, live.request, live.sample, live.answered));
  } catch (const Error& error) {
    if (error.code != ErrorCode::kOutOfPages) throw;
    return false;
  }
  if (result.copy) {
    memory_.copy(*result.copy);
    ++counts_.copied_pages;
  }
  memory_.fill(result.page, result.slot);
  ++live.answered;
  const auto slot = static_cast<int32_t>(&live - live_.data());
  table(slot)[kv_len_[slot] / options_.page_tokens] = result.page;
  ++kv_len_[slot];
  return true;
}

void Scheduler::preempt(const Live& live) {
  tree_.release(live.id);
  preempted_.push_front({live.request, live.sample, 1, live.answered});
  ++counts_.preempted;
  admission_paused_ = true;
}

/// A slot goes on unless it holds another sequence. Pages of a sequence are replaced by copies only
/// in its first step, because forks append in the step that starts them.
void Scheduler::note_changes() {
  changed_.clear();
  for (int32_t slot = 0; slot < std::min(live(), static_cast<int32_t>(previous_.size())); ++slot) {
    if (live_[slot].id != previous_[slot]) changed_.push_back(slot);
  }
  previous_.clear();
  for (const Live& live : live_) previous_.push_back(live.id);
}

}  // namespace pando::replay
