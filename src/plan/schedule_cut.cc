// Cutting lists into pieces for the thread blocks.
#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "plan/schedule.h"

namespace pando::cuda {
namespace {

/// The first of steps [begin, end) whose middle does not lie before `us`; `end` if there is none.
int32_t steps_before(const double* until_us, int32_t begin, int32_t end, double us) {
  while (begin < end) {
    const int32_t step = std::midpoint(begin, end);
    if (until_us[step] + until_us[step + 1] < 2 * us) {
      begin = step + 1;
    } else {
      end = step;
    }
  }
  return begin;
}

}  // namespace

/// Every list into `parts` parts of equal weight, at the first kv head: see deal_evenly. Returns
/// the predicted time.
double Scheduler::cut_evenly(const Problem& p, int32_t parts, Layout& out) {
  out.pieces.clear();
  taken_.assign(out.lists.size(), 0);
  for (int32_t part = 0; part < parts; ++part) {
    for (int32_t i = 0; i < static_cast<int32_t>(out.lists.size()); ++i) {
      const List& list = out.lists[i];
      const double* const until_us = out.until_us.data() + list.step_begin;
      const double all_us = until_us[list.steps()];
      const int32_t begin = taken_[i];
      const int32_t end = part + 1 == parts ? list.steps()
                                            : steps_before(until_us, begin, list.steps(),
                                                           all_us * (part + 1) / parts);
      if (begin < end) out.pieces.push_back({i, 0, begin, end, 0});
      taken_[i] = end;
    }
  }
  const auto pieces = static_cast<int32_t>(out.pieces.size()) * p.kv_heads;
  // The fewer thread blocks work, the more of memory's speed each has; how much more was measured
  // with 16 to 128 of them (docs/benchmarks/h200-kernel-turns-2026-11-29.txt).
  const double working = std::min(1.0, double(pieces) / p.thread_blocks);
  const auto cube = [](double x) { return x * x * x; };
  const double spared = out.own_factor - std::cbrt(1 + cube(working) * (cube(out.own_factor) - 1));
  loads_.assign(p.thread_blocks, 0);
  int32_t thread_block = 0;
  // Where each thread block has one piece at most, all kv heads are alike.
  for (int32_t head = 0; head < (pieces <= p.thread_blocks ? 1 : p.kv_heads); ++head) {
    for (const Piece& piece : out.pieces) {
      const double* const until_us = out.until_us.data() + out.lists[piece.list].step_begin;
      const double* const own_us = out.own_until_us.data() + out.lists[piece.list].step_begin;
      loads_[thread_block] += p.cost.unit_us + until_us[piece.end] - until_us[piece.begin] -
                              spared * (own_us[piece.end] - own_us[piece.begin]);
      thread_block = thread_block + 1 == p.thread_blocks ? 0 : thread_block + 1;
    }
  }
  // There are as many thread blocks as pieces: each is the last unit of one.
  const double end_us = parts > 2 ? p.merging_us(parts) : parts == 2 ? p.exchange_us() : 0;
  return *std::ranges::max_element(loads_) + end_us;
}

/// The pieces of cut_evenly at all kv heads, one thread block after another: the same parts of
/// lists that read the same tokens lie side by side, so that L2 serves them together. The two parts
/// of a list are for the thread blocks of one cluster.
void Scheduler::deal_evenly(const Problem& p, int32_t parts, Layout& out) {
  const size_t one_head = out.pieces.size();
  const auto lists = static_cast<int32_t>(out.lists.size());
  out.pieces.resize(one_head * p.kv_heads);
  for (size_t at = 0; at < out.pieces.size(); ++at) {
    Piece& piece = out.pieces[at];
    piece = out.pieces[at % one_head];
    piece.kv_head = static_cast<int32_t>(at / one_head);
    piece.thread_block = static_cast<int32_t>(at % p.thread_blocks);
    if (parts == 2) {
      piece.thread_block = 2 * (piece.kv_head * lists + piece.list) + (piece.begin > 0 ? 1 : 0);
    }
  }
}

/// Cuts the lists, one after another, so that every thread block gets the same predicted time: of
/// what is left its part, as cuts fall between tiles.
double Scheduler::cut_by_share(const Problem& p, Layout& out) {
  out.pieces.clear();
  double rest_us = 0;  // that is not dealt yet
  for (const List& list : out.lists) {
    rest_us += p.kv_heads * (out.until_us[list.step_begin + list.steps()] + p.cost.unit_us);
  }
  double most_us = 0, left_us = 0, busy_us = 0;
  int32_t thread_block = -1;
  const auto next_thread_block = [&] {
    ++thread_block;
    left_us = rest_us / (p.thread_blocks - thread_block) + p.cost.unit_us;
    busy_us = 0;
  };
  next_thread_block();
  for (int32_t head = 0; head < p.kv_heads; ++head) {
    for (int32_t i = 0; i < static_cast<int32_t>(out.lists.size()); ++i) {
      const List& list = out.lists[i];
      const double* const until_us = out.until_us.data() + list.step_begin;
      for (int32_t begin = 0; begin < list.steps();) {
        const bool last = thread_block == p.thread_blocks - 1;
        const double limit_us = left_us - p.cost.unit_us + until_us[begin];
        const int32_t end =
            last ? list.steps() : steps_before(until_us, begin, list.steps(), limit_us);
        if (end > begin) {
          out.pieces.push_back({i, head, begin, end, thread_block});
          const double us = until_us[end] - until_us[begin];
          left_us -= p.cost.unit_us + us;
          busy_us += p.cost.unit_us + us;
          rest_us -= us + (begin == 0 ? p.cost.unit_us : 0);
          most_us = std::max(most_us, busy_us);
          begin = end;
        }
        if (begin < list.steps()) next_thread_block();
      }
      if (left_us < p.cost.unit_us && thread_block < p.thread_blocks - 1) next_thread_block();
    }
  }
  const auto lists = static_cast<double>(std::max<size_t>(1, out.lists.size())) * p.kv_heads;
  const double sources = static_cast<double>(out.pieces.size()) / lists;
  // What its predictions lack, chosen by hand: enough for shapes whose times nearly tie and that
  // took 6 and 8 us longer so cut (prefix-128 in docs/benchmarks/h200-memory-2026-11-29.txt,
  // prefix-8192 in h200-kernel-turns-2026-11-29.txt there).
  constexpr double kUnevenUs = 2.0;
  return std::max(most_us, out.apart_us) + p.merging_us(sources + 1) + kUnevenUs;
}

/// The cut with the least predicted time.
void Scheduler::cut(const Problem& p, Layout& out) {
  const auto lists = static_cast<int32_t>(out.lists.size()) * p.kv_heads;
  int32_t longest = 1;
  for (const List& list : out.lists) longest = std::max(longest, list.steps());
  const int32_t most = std::min(longest, std::max(1, p.thread_blocks / std::max(1, lists)));
  const double by_share_us = cut_by_share(p, out);
  int32_t best_parts = 0;
  out.predicted_us = by_share_us;
  // Every number of parts up to 4, then three between each power of two and the next, then the
  // most.
  int32_t last_parts = 0;
  for (int32_t parts = 1; last_parts < most;
       parts +=
       std::max(1, static_cast<int32_t>(std::bit_floor(static_cast<uint32_t>(parts)) / 4))) {
    last_parts = std::min(parts, most);
    const double us = cut_evenly(p, last_parts, out);
    if (us > out.predicted_us) continue;
    out.predicted_us = us;
    best_parts = last_parts;
  }
  if (best_parts == 0) {
    cut_by_share(p, out);
    return;
  }
  if (best_parts != last_parts) cut_evenly(p, best_parts, out);
  deal_evenly(p, best_parts, out);
}

}  // namespace pando::cuda
