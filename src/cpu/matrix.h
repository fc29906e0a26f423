// The AMX kernel: bf16 matrix tiles on x86 processors that have them.
#pragma once

#include "cpu/unit.h"

namespace pando {

/// True when this processor has AMX tiles with bf16 products and the system lets us use them.
bool matrix_available();

/// Attention of a unit with bf16 tile products. The thread's tiles must be configured.
void attend_matrix(const Unit& unit);

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
