// The work list of one attend call: what is shared, how it is split, how partials merge, and why.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pando/attention.h"
#include "pando/forest.h"
#include "pando/profile.h"

namespace pando {

enum class Sharing : int32_t {
  kAuto = 0,  ///< share a segment where the cost model says that it pays
  kNone = 1,  ///< every sequence reads all of its own KV
  kAll = 2,   ///< share every segment of the forest, for tests and measurements
};

struct PlanOptions {
  Sharing sharing = Sharing::kAuto;
  /// A sequence's output is bitwise the same whoever else is in the batch and whatever is shared:
  /// kv is cut at multiples of cut_tokens, only whole cuts (on CUDA whole tiles of 128 tokens) are
  /// shared, partials merge left to right.
  bool batch_invariant = false;
  int32_t cut_tokens = 512;  ///< multiple of the profile's kv_tile and of page_tokens
};

/// One query row in plan order. Rows under a segment are contiguous in plan order.
struct PlanRow {
  int32_t q_row;          ///< row of q, out and lse
  int32_t visible_begin;  ///< the one mask rule, clamped to [0, kv_len]
  int32_t visible_end;
  /// The row sees all of [visible_begin, tree_begin). Of [tree_begin, visible_end), at most 64
  /// positions, it sees tree_begin + j where bit j of tree_mask is set. Rows without holes have
  /// tree_begin = visible_end and tree_mask = 0.
  int32_t tree_begin;
  uint64_t tree_mask;
};

/// Attention of a tile of packed rows over a run of kv tokens, at every kv head. Plans for CUDA
/// have no items, merges and sources: their work list is schedule().
///
/// Packed row `p` at kv head `h` is query row `rows[p / group].q_row`, query head
/// `h * group + p % group`. Token `t` lies in page `page_ids[page_offset + t / page_tokens]`,
/// slot `t % page_tokens`.
struct WorkItem {
  int64_t page_offset;  ///< index in page_ids of the page that holds position 0
  int32_t token_begin;
  int32_t token_end;  ///< never past the end of every sequence in the tile
  int32_t packed_begin;
  int32_t packed_end;
  int32_t partial;  ///< partial slot of packed_begin; -1: the tile is written to out
  int32_t full;     ///< 1 when every row sees every token, so that no mask is needed
};

/// Packed rows whose result is the merge, in order, of the same sources.
/// With no source the result is empty: o = 0, lse = -inf.
struct MergeGroup {
  int32_t packed_begin;
  int32_t packed_end;
  int32_t source_begin;  ///< sources()[source_begin .. source_end): partial slot of packed_begin
  int32_t source_end;
};

/// Why a segment is or is not shared.
enum class Reason : int32_t {
  kShared = 0,          ///< read once for all its rows
  kMergeCostsMore = 1,  ///< partials and merging cost more than reading again
  kPlanSlower = 2,      ///< sharing as a whole was predicted slower than no sharing
  kSharingOff = 3,      ///< PlanOptions::sharing is kNone
  kNotWholeCut = 4,     ///< batch-invariant, and holds no whole cut (CUDA: tile) more
  kInvisible = 5,       ///< outside every row's visible range: nobody reads it
  kOneReader = 6,       ///< one sequence at most has rows that see some of it
};
std::string_view reason_text(Reason reason);

/// One record for each segment that two or more sequences hold.
struct Decision {
  int32_t segment;  ///< index in forest.segments()
  int32_t parent;
  int32_t token_begin;
  int32_t token_end;
  int32_t sequences;
  int32_t q_rows;
  Reason reason;
  int32_t seen_by;  ///< of the sequences, those with a row that sees some of it
  double saves_us;  ///< predicted time of reading it again for each child
  double costs_us;  ///< predicted time of partials, merging and extra items
};

struct PlanCost {
  double predicted_us = 0;           ///< of this plan
  double predicted_unshared_us = 0;  ///< of the same batch without sharing
  double roof_us = 0;                ///< max(bytes once / bandwidth, FLOPs / peak)
  int64_t kv_bytes = 0;              ///< KV bytes read by this plan
  int64_t unshared_kv_bytes = 0;     ///< KV bytes read without sharing
  int64_t io_bytes = 0;              ///< q and out
  int64_t partial_bytes = 0;         ///< partials written and read back
  int64_t flops = 0;                 ///< useful: 4 * head_dim for each visible (row, head, token)
  int64_t padded_flops = 0;          ///< with rows padded to the device's granule
  int64_t unshared_padded_flops = 0;
};

/// The head of a plan's flat buffer; sections follow at the given byte offsets.
struct PlanHeader {
  static constexpr uint32_t kMagic = 0x4f444e50;  // "PNDO"
  static constexpr uint32_t kVersion = 8;

  uint32_t magic = kMagic;
  uint32_t version = kVersion;
  int64_t total_bytes = 0;
  int64_t rows_offset = 0;
  int64_t items_offset = 0;
  int64_t merges_offset = 0;
  int64_t sources_offset = 0;
  int64_t decisions_offset = 0;
  int64_t schedule_offset = 0;
  int64_t schedule_bytes = 0;  ///< CUDA; 0 for the CPU
  int32_t rows = 0;
  int32_t items = 0;
  int32_t merges = 0;
  int32_t sources = 0;
  int32_t decisions = 0;
  int32_t partial_slots = 0;  ///< per kv head; 0 for CUDA
  int32_t units = 0;          ///< CUDA: pieces of work that the thread blocks are given
  int32_t q_heads = 1;
  int32_t kv_heads = 1;
  int32_t head_dim = 0;
  DType dtype = DType::kF32;     ///< of q and out
  DType kv_dtype = DType::kF32;  ///< of k and v: as dtype, or fp8
  float scale = 1;
  float soft_cap = 0;     ///< 0: none
  int32_t tree_rows = 0;  ///< rows with holes; 0: no kernel needs to look at tree_mask
  int32_t page_tokens = 1;
  int32_t max_page_id = -1;
  int32_t sequences = 0;
  int32_t batch_invariant = 0;
  Backend backend = Backend::kCpu;
  int32_t workers = 1;
  int32_t row_tile = 1;
  int32_t kv_tile = 1;
  int32_t narrow_rows = 0;     ///< tiles of at most so many packed rows use the narrow kernel
  int32_t cut_tokens = 0;      ///< of a batch-invariant plan; 0 for others
  int32_t reserved = 0;        ///< nothing here may be padding: equal plans are equal bytes
  int64_t page_table_len = 0;  ///< page_ids must hold at least so many ids
  int64_t partial_rows = 0;    ///< at all kv heads
  int64_t partials_bytes = 0;  ///< workspace: fp32 [partial_rows][head_dim], then lse
  int64_t scratch_bytes = 0;   ///< workspace: per worker
  PlanCost cost;
  std::array<char, 64> device{};
};

/// An immutable, flat, relocatable work list: a pure function of forest, spec, profile, options.
class Plan {
 public:
  Plan() = default;

  /// Of an empty plan when default-constructed.
  const PlanHeader& header() const;
  std::span<const PlanRow> rows() const;
  std::span<const WorkItem> items() const;
  std::span<const MergeGroup> merges() const;
  std::span<const int32_t> sources() const;
  std::span<const Decision> decisions() const;
  /// The work list that the CUDA kernel reads; empty for the CPU. Aligned to 64 bytes.
  std::span<const std::byte> schedule() const;
  const PlanCost& cost() const { return header().cost; }
  int32_t group() const { return header().q_heads / header().kv_heads; }

  /// Bytes that `attend` needs besides its inputs and outputs: partials and per-worker scratch.
  int64_t workspace_bytes() const;
  /// The whole plan; equal inputs give equal bytes. Aligned to 64 bytes.
  std::span<const std::byte> bytes() const;
  /// A plan from such bytes; throws kInvalidArgument when they are not a plan of this version.
  static Plan from_bytes(std::span<const std::byte> bytes);

 private:
  friend class Planner;
  struct alignas(64) Block {
    std::byte bytes[64];
  };
  std::vector<Block> blocks_;  // empty for a default plan
};

/// Makes plans and keeps its scratch memory, so that replanning stops allocating.
class Planner {
 public:
  explicit Planner(DeviceProfile profile);
  ~Planner();
  Planner(Planner&&) noexcept;
  Planner& operator=(Planner&&) noexcept;

  /// Throws kInvalidArgument or kUnsupported; `into` is then unchanged.
  void plan(const Forest& forest, const AttentionSpec& spec, const PlanOptions& options,
            Plan& into);
  const DeviceProfile& profile() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// One-off planning.
Plan plan(const Forest& forest, const AttentionSpec& spec, const DeviceProfile& profile,
          const PlanOptions& options = {});

/// What is shared, what is not and why, bytes and FLOPs saved, predicted time, share of the roof.
std::string explain(const Plan& plan);
/// The same and more for programs: one line of JSON; with `with_items`, the work items too.
std::string to_json(const Plan& plan, bool with_items = false);

}  // namespace pando
