// Continuous batching: which sequences are decoded at each step, and on which pages.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "pando/batch.h"
#include "pando/prefix_tree.h"
#include "replay/kv_memory.h"
#include "replay/options.h"
#include "replay/trace.h"

namespace pando::replay {

/// What happened to the requests so far.
struct Counts {
  int64_t admitted = 0;       ///< sequences started, those that went on after preemption included
  int64_t finished = 0;       ///< sequences whose answer is complete
  int64_t refused = 0;        ///< requests longer than the whole pool, skipped
  int64_t preempted = 0;      ///< sequences put back into the queue because pages ran out
  int64_t prompt_tokens = 0;  ///< tokens inserted
  int64_t cached_tokens = 0;  ///< of these, tokens whose KV was in the pool already
  int64_t copied_pages = 0;   ///< copy-on-write of half-full pages
  int64_t evicted_pages = 0;
};

/// Takes the requests of a trace in order, as slots and pages allow.
///
/// When pages run out, the sequence admitted last is preempted: its pages are released, and it goes
/// on later from its prompt and the tokens answered so far. Nothing is admitted from then on until
/// a sequence ends: one whose next page was missing would only be preempted again.
class Scheduler {
 public:
  /// Everything must outlive the scheduler.
  Scheduler(const Trace& trace, const ReplayOptions& options, KvMemory& memory);

  /// Ends what is finished, admits what fits, appends one token (random KV) to every sequence.
  /// False, and an empty batch, when no request is left.
  bool step();

  /// One query row for each sequence: its last token. Valid until the next step.
  BatchView batch() const;
  /// Slots of the batch that do not simply go on from the step before.
  std::span<const int32_t> changed() const { return changed_; }
  Counts counts() const;

 private:
  struct Waiting {
    int64_t request;
    int32_t sample;   // the first of them
    int32_t samples;  // to start together
    int64_t answered;
  };
  struct Live {
    SequenceId id;
    int64_t request;
    int32_t sample;
    int64_t answered;
    int64_t wanted;
    int64_t admission;  // younger sequences have greater numbers
  };

  int64_t pages_needed(const Request& request) const;
  std::optional<Waiting> next_waiting();
  bool admit(const Waiting& waiting);
  void start(SequenceId id, const Waiting& waiting, int32_t sample);
  void end_finished();
  void admit_all();
  void append_all();
  bool append(Live& live);
  void preempt(const Live& live);
  void remove(int32_t slot);
  void note_changes();
  int32_t* table(int32_t slot) { return page_ids_.data() + int64_t{slot} * table_width_; }
  int32_t live() const { return static_cast<int32_t>(live_.size()); }

  const Trace& trace_;
  const ReplayOptions& options_;
  KvMemory& memory_;
  KvPool pool_;
  PrefixTree tree_;
  Counts counts_;
  int64_t next_request_ = 0;
  std::deque<Waiting> preempted_;
  bool admission_paused_ = false;
  double clock_ms_ = 0;

  std::vector<Live> live_;  // by slot
  std::vector<SequenceId> previous_;
  std::vector<int32_t> changed_;
  int32_t table_width_ = 1;  // pages
  std::vector<int32_t> q_indptr_;
  std::vector<int32_t> kv_len_;
  std::vector<int32_t> page_indptr_;
  std::vector<int32_t> page_ids_;
};

}  // namespace pando::replay
