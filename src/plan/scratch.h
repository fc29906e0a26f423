// Scratch memory of one CPU worker: what the plan promises and how the kernels carve it up.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace pando {

/// Tokens that the vector kernels take at once, on an absolute grid of kv positions.
inline constexpr int32_t kTileTokens = 64;
/// Tokens that a matrix kernel takes at once at most, on an absolute grid of kv positions.
inline constexpr int32_t kMatrixTileTokens = 256;
/// Rows and head dimensions are padded to the widest vector of any target.
inline constexpr int32_t kMaxLanes = 16;
/// Two such vectors: the unit in which the narrow kernel reads a head of K or V.
inline constexpr int32_t kMaxChunk = 2 * kMaxLanes;

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

/// Hands out 64-byte aligned arrays from a block; with a null block it only measures.
class ScratchCursor {
 public:
  explicit ScratchCursor(std::byte* block) : block_(block) {}

  template <typename T>
  T* take(int64_t count) {
    std::byte* const at = block_ == nullptr ? nullptr : block_ + bytes_;
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* block_;
  int64_t bytes_ = 0;
};

/// What each row sees, an array of int32_t for each part of it. The last three are of a call with
/// trees only: of [tree_begins, ends), which holes a row has; a mask in its two halves.
struct LaneMasks {
  int32_t *begins, *ends, *tree_begins, *tree_low, *tree_high;

  LaneMasks() = default;
  LaneMasks(ScratchCursor& cursor, int64_t lanes) {
    for (int32_t** part : {&begins, &ends, &tree_begins, &tree_low, &tree_high}) {
      *part = cursor.take<int32_t>(lanes);
    }
  }
  LaneMasks from(int32_t row) const {
    LaneMasks rest = *this;
    for (int32_t** part :
         {&rest.begins, &rest.ends, &rest.tree_begins, &rest.tree_low, &rest.tree_high}) {
      *part += row;
    }
    return rest;
  }
  bool sees(int32_t row, int32_t token, bool trees) const {
    if (token < begins[row] || token >= ends[row]) return false;
    if (!trees || token < tree_begins[row]) return true;
    const int32_t bit = token - tree_begins[row];
    const auto half = static_cast<uint32_t>(bit < 32 ? tree_low[row] : tree_high[row]);
    return (half >> bit % 32 & 1) != 0;
  }
};

/// Buffers of the wide kernel. Panels of q, s and o hold rows in lanes.
struct WideScratch {
  float *q, *o, *k, *v, *s;
  float *row_max, *row_sum, *alpha, *row_out;
  LaneMasks masks;
  int64_t *offsets, *next_offsets;
  const float **k_rows, **v_rows;

  WideScratch(ScratchCursor& cursor, int32_t rows, int32_t head_dim) {
    const int64_t lanes = round_up(rows, kMaxLanes);
    q = cursor.take<float>(lanes * head_dim);
    s = cursor.take<float>(int64_t{kTileTokens} * 3 * kMaxLanes);
    k = cursor.take<float>(int64_t{kTileTokens} * head_dim);
    v = cursor.take<float>(int64_t{kTileTokens} * head_dim);
    o = cursor.take<float>(lanes * head_dim);
    row_max = cursor.take<float>(lanes);
    row_sum = cursor.take<float>(lanes);
    alpha = cursor.take<float>(lanes);
    row_out = cursor.take<float>(head_dim);
    masks = LaneMasks(cursor, lanes);
    offsets = cursor.take<int64_t>(kTileTokens);
    next_offsets = cursor.take<int64_t>(kTileTokens);
    k_rows = cursor.take<const float*>(kTileTokens);
    v_rows = cursor.take<const float*>(kTileTokens);
  }
};

/// Buffers of the narrow kernel. q and o hold the head dimension in lanes, in reading order.
struct NarrowScratch {
  float *q, *o, *s;
  float *row_max, *row_sum, *alpha, *row_out;
  int32_t *seen_begin, *seen_end;
  uint64_t* seen;  ///< in a call with trees: bit t for token t of the tile
  int64_t *offsets, *next_offsets;

  NarrowScratch(ScratchCursor& cursor, int32_t rows, int32_t head_dim) {
    const int64_t padded_dim = round_up(head_dim, kMaxChunk);
    q = cursor.take<float>(rows * padded_dim);
    o = cursor.take<float>(rows * padded_dim);
    s = cursor.take<float>(int64_t{rows} * kTileTokens);
    row_max = cursor.take<float>(rows);
    row_sum = cursor.take<float>(int64_t{rows} * kMaxLanes);
    alpha = cursor.take<float>(rows);
    row_out = cursor.take<float>(padded_dim);
    seen_begin = cursor.take<int32_t>(rows);
    seen_end = cursor.take<int32_t>(rows);
    seen = cursor.take<uint64_t>(rows);
    offsets = cursor.take<int64_t>(kTileTokens);
    next_offsets = cursor.take<int64_t>(kTileTokens);
  }
};

/// Buffers of the matrix kernels, all in tiles of 16 rows of 64 bytes; bf16 values are held as
/// uint16_t, and pairs of them as uint32_t.
struct MatrixScratch {
  uint32_t* q_pairs;  ///< [row block][32 dims][pair of dims][row]
  uint32_t* v_pairs;  ///< [pair of tokens][dim], dims in the order of the interleaving
  uint16_t* k;        ///< [token][dim], for tokens that cannot be read from their page as a tile
  float* s;           ///< [row block][token and three spare blocks][row]
  uint32_t* p_pairs;  ///< [row block][32 tokens][row][pair of tokens]
  float* o;           ///< [row block][16 dims][row][dim]
  float *row_max, *row_sum, *alpha, *row_out;
  LaneMasks masks;
  int64_t *offsets, *next_offsets;

  MatrixScratch(ScratchCursor& cursor, int32_t rows, int32_t head_dim) {
    const int64_t padded_rows = round_up(rows, kMaxLanes);
    const int64_t padded_dim = round_up(head_dim, kMaxChunk);
    q_pairs = cursor.take<uint32_t>(padded_rows * padded_dim / 2);
    v_pairs = cursor.take<uint32_t>(int64_t{kMatrixTileTokens} / 2 * padded_dim);
    k = cursor.take<uint16_t>(int64_t{kMatrixTileTokens} * padded_dim);
    s = cursor.take<float>((kMatrixTileTokens + 48) * padded_rows);
    p_pairs = cursor.take<uint32_t>(kMatrixTileTokens / 2 * padded_rows);
    o = cursor.take<float>(padded_rows * padded_dim);
    row_max = cursor.take<float>(padded_rows);
    row_sum = cursor.take<float>(padded_rows);
    alpha = cursor.take<float>(padded_rows);
    row_out = cursor.take<float>(padded_dim);
    masks = LaneMasks(cursor, padded_rows);
    offsets = cursor.take<int64_t>(kMatrixTileTokens);
    next_offsets = cursor.take<int64_t>(kMatrixTileTokens);
  }
};

/// Bytes of per-worker scratch for tiles of at most `row_tile` packed rows. The kernels' own token
/// tiles are constants, so the plan's `kv_tile` does not enter; it is part of the signature because
/// a plan is made for both.
int64_t cpu_scratch_bytes(int32_t row_tile, int32_t kv_tile, int32_t head_dim);

}  // namespace pando
