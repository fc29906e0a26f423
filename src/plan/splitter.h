// From runs to tiles: how rows are cut into tiles, and how many splits each tile's tokens get.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "plan/cost_model.h"
#include "plan/runs.h"

namespace pando {

/// A tile of packed rows of one run, with the tokens that some of its rows see.
struct Tile {
  int32_t run;
  int32_t packed_begin;
  int32_t packed_end;
  int32_t token_begin;
  int32_t token_end;
  int32_t all_begin;  ///< every row sees every token of [all_begin, all_end)
  int32_t all_end;
  int32_t splits;      ///< 0 when no row sees any token
  int32_t split_base;  ///< split i is [split_base + i * split_tokens, + split_tokens), clipped
  int32_t split_tokens;
  bool alone;       ///< no other tile holds its rows: with one split it needs no partial
  int32_t partial;  ///< first partial slot, -1 when the tile is written to out
  double token_us;  ///< worker time of one token at one kv head

  int32_t rows() const { return packed_end - packed_begin; }
  int32_t tokens() const { return token_end - token_begin; }
  int32_t begin_of(int32_t split) const {
    return std::max(token_begin, split_base + split * split_tokens);
  }
  int32_t end_of(int32_t split) const {
    const int64_t end = int64_t{split_base} + int64_t{split + 1} * split_tokens;
    return static_cast<int32_t>(std::min<int64_t>(token_end, end));
  }
};

/// Predicted cost of a list of tiles.
struct Prediction {
  double us = 0;
  int64_t kv_bytes = 0;
  int64_t padded_flops = 0;
  int64_t partial_slots = 0;  ///< per kv head
};

/// The tiles of one way to share, and how they are split.
class Splitter {
 public:
  struct Context {
    const RowOrder& order;
    const CostModel& cost;
    const DeviceProfile& profile;
    const PlanOptions& options;
    int32_t page_tokens;
    double memory_us;  ///< in which memory delivers all that the runs read, each run once
  };

  /// Cuts `runs` into tiles and chooses the splits that the cost model predicts to be fastest.
  void split(std::span<const Run> runs, const Context& context);

  std::span<Tile> tiles() { return tiles_; }
  std::span<const Tile> tiles() const { return tiles_; }
  const Prediction& prediction() const { return prediction_; }

 private:
  void cut_rows(std::span<const Run> runs, const Context& context);
  void add_tile(const Run& run, int32_t index, int32_t packed_begin, int32_t packed_end,
                const Context& context);
  /// Sets the splits so that no unit takes longer than `longest_us`, and the prediction.
  void apply(const Context& context, double longest_us);
  void apply_cuts(const Context& context);
  void predict(const Context& context);

  std::vector<Tile> tiles_;
  std::vector<uint8_t> alone_;  ///< by run: no run above or below it
  Prediction prediction_;
  double longest_us_ = 0;  ///< predicted time of the longest unit
  double share_us_ = 0;    ///< worker time in which memory delivers one token of one kv head
};

}  // namespace pando
