// The matrix kernels: bf16 products on x86 processors that have AMX tiles or AVX-512 dot products.
#pragma once

#include "cpu/unit.h"

namespace pando {

/// True when this processor has AMX tiles with bf16 products and the system lets us use them.
bool tiles_available();
/// True when this processor has AVX-512 with dot products of bf16 pairs.
bool dots_available();

/// Attention of a unit with bf16 tile products. The thread's tiles must be configured.
void attend_tiles(const Unit& unit);
/// Attention of a unit with bf16 dot products.
void attend_dots(const Unit& unit);
/// The same with head_dim in the lanes, for few rows.
void attend_few_dots(const Unit& unit);
/// The same of fp8 K and V.
void attend_few_dots_fp8(const Unit& unit);

/// Configures this thread's tiles for the length of its life, when `active`.
class MatrixTiles {
 public:
  explicit MatrixTiles(bool active);
  ~MatrixTiles();
  MatrixTiles(const MatrixTiles&) = delete;
  MatrixTiles& operator=(const MatrixTiles&) = delete;

 private:
  bool active_;
};

}  // namespace pando
