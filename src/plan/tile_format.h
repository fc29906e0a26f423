// A tile of the attend kernel as it is described to the loaders and to the consumers: the first
// ones of a thread block by its schedule, all others by the kernel's scout.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace pando::cuda {

/// Slots of a tile: of one turn of the kernel's ring.
inline constexpr int32_t kTileTokens = 128;
inline constexpr int32_t kHalfTokens = 64;
/// Tokens of a whole tile that the kernel takes at once: one softmax, one slot of its ring. Above a
/// head_dim of 128 registers and shared memory have room for half a tile.
constexpr int32_t tokens_at_once(int32_t head_dim) {
  return head_dim > 128 ? kHalfTokens : kTileTokens;
}
/// Slots of a swizzle atom: runs start at multiples.
inline constexpr int32_t kGranule = 8;
inline constexpr int32_t kGranules = kTileTokens / kGranule;

/// Whether a box whose rows have so many bytes lies in shared memory in the 128-byte swizzle;
/// others lie there as they do in memory.
constexpr bool is_swizzled(int64_t row_bytes) { return row_bytes == 128; }

/// Slots of a stream and positions of a sequence at most, so that their sums fit 32 bits.
inline constexpr int32_t kMostSlots = 1 << 30;
inline constexpr int32_t kMostPositions = 1 << 30;

/// Tokens that some rows of a list attend to, placed in the slots of one of its streams.
struct alignas(16) Run {
  static constexpr int kEmptyShift = 16;
  static constexpr uint32_t kEmpty = 0xffu << kEmptyShift;
  static constexpr uint32_t kFull = 1u << 26;   ///< every row of the list's blocks sees every token
  static constexpr uint32_t kPlain = 1u << 27;  ///< the run's rows see every token

  int32_t slot_begin;   ///< in the stream, a multiple of kGranule
  int32_t token_begin;  ///< positions in the sequence
  int32_t token_end;
  int32_t page_offset;  ///< index in page_ids of the page that holds position 0
  /// That see this run, from the list's first: begin | end << 8 | empty << kEmptyShift | flags. Of
  /// the first kGranule slots those whose bit is set in `empty` count as if they held no token.
  uint32_t rows;
  int32_t reserved[3];

  constexpr uint32_t empty() const { return (rows & kEmpty) >> kEmptyShift; }
};

/// Tokens of a big box at most. Larger ones were slower by up to 3 %: the first of their tokens
/// come later (docs/benchmarks/h200-kernel-boxes-2026-11-30.txt).
inline constexpr int32_t kBoxTokens = 16;

/// The pages that tokens lie in, and the boxes in which they are loaded.
struct PageShape {
  int32_t page_shift;  ///< log2 of the tokens of a page
  int32_t box_shift;   ///< log2 of the tokens of a big box

  static constexpr PageShape of(int32_t page_tokens) {
    const auto log2 = [](int32_t power) { return std::countr_zero(static_cast<uint32_t>(power)); };
    return {log2(page_tokens), log2(std::min(page_tokens, kBoxTokens))};
  }
  constexpr int32_t page_tokens() const { return 1 << page_shift; }
  constexpr int32_t box_tokens() const { return 1 << box_shift; }
  constexpr int32_t small_box_tokens() const { return std::min(page_tokens(), kGranule); }
  /// Whether tokens are copied one by one, since a box would be smaller than a granule.
  constexpr bool by_token() const { return page_tokens() < kGranule; }
};

/// Eight slots of a tile.
struct Granule {
  static constexpr uint32_t kBig = 1u << 24;    ///< a big box that starts here is loaded
  static constexpr uint32_t kSmall = 1u << 25;  ///< a box of 8 tokens is loaded
  static constexpr int kSlotsShift = 16;
  static constexpr uint32_t kAllSlots = (1u << kGranule) - 1;
  static_assert(((kBig | kSmall | kAllSlots << kSlotsShift) & (Run::kFull | Run::kPlain)) == 0);

  int32_t position;  ///< of its first token in the sequence
  int32_t page;      ///< index in page_ids of the page that holds that token
  /// row_begin | row_end << 8 | slots, one bit each, that hold a token << kSlotsShift | flags
  uint32_t rows;

  constexpr bool is(uint32_t flags) const { return (rows & flags) != 0; }
  constexpr uint32_t slots() const { return rows >> kSlotsShift & kAllSlots; }
  constexpr bool has_hole() const { return slots() != kAllSlots; }
  /// Tokens of the boxes that are loaded.
  constexpr int32_t tokens(const PageShape& pages) const {
    return is(kBig) ? pages.box_tokens() : is(kSmall) ? kGranule : 0;
  }

  /// The granule at `slot` of a stream, the `in_half`-th of its half; `run` is the last that starts
  /// at or before it, if `any` does.
  static constexpr Granule describe(const Run& run, bool any, int32_t slot, int32_t in_half,
                                    const PageShape& pages) {
    if (!any) return {0, 0, 0};
    Granule g{};
    g.position = run.token_begin + slot - run.slot_begin;
    const int32_t left = run.token_end - g.position;
    const uint32_t held = left <= 0 ? 0 : left >= kGranule ? kAllSlots : (1u << left) - 1;
    const uint32_t empty = run.slot_begin == slot ? run.empty() : 0;
    g.rows = (run.rows & 0xffff) | (held & ~empty) << kSlotsShift;
    if (left >= kGranule && empty == 0) g.rows |= run.rows & (Run::kFull | Run::kPlain);
    const int32_t box = pages.box_tokens();
    // The big box that would hold this granule: whole inside run and half?
    const int32_t into = g.position & (box - 1);
    const int32_t head = in_half * kGranule - into;
    const bool inside = box >= kGranule && head >= 0 && head + box <= kHalfTokens &&
                        g.position - into >= run.token_begin &&
                        g.position - into + box <= run.token_end;
    g.page = run.page_offset + (g.position >> pages.page_shift);
    if (left > 0 && (!inside || into == 0)) g.rows |= inside ? kBig : kSmall;
    return g;
  }
};

/// What the roles of the kernel are told of a tile.
struct alignas(16) TileInfo {
  int32_t position[kGranules];  ///< as in Granule
  uint32_t rows[kGranules];
  /// Id of each granule's page. Where the schedule describes the tile, and of pages smaller than a
  /// granule: index in page_ids.
  int32_t page[kGranules];
  int32_t kv_head;
  uint32_t state[3];  ///< of each half and of the whole: how it is masked | kHoles
  int32_t tokens;     ///< that will be loaded
  int32_t reserved[3];

  static constexpr uint32_t kFull = 0;   ///< every row sees every token
  static constexpr uint32_t kPlain = 1;  ///< the rows of one run see every token, the others none
  static constexpr uint32_t kMixed = 2;  ///< every granule must be looked at
  static constexpr uint32_t kHoles = 4;  ///< some slot holds no token

  /// One bit for each granule of a part of a tile that every row sees, that its rows see and are
  /// those of the part's first, that has a hole; `part` has the bits of all its granules.
  static constexpr uint32_t state_of(uint32_t part, uint32_t full, uint32_t plain, uint32_t holes) {
    const uint32_t masked = (full & part) == part    ? kFull
                            : (plain & part) == part ? kPlain
                                                     : kMixed;
    return masked | ((holes & part) != 0 ? kHoles : 0);
  }
};

}  // namespace pando::cuda
