// Which matrix products may be used, and the state of a thread's tiles.
#include "cpu/matrix.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/matrix_tiles.h"
#include "hwy/targets.h"

namespace pando {
namespace {

bool processor_has_tiles() {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr uint32_t kAmxBf16 = 1u << 22;
  constexpr uint32_t kAmxTile = 1u << 24;
  return (edx & kAmxBf16) != 0 && (edx & kAmxTile) != 0;
}

bool processor_has_dots() {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr uint32_t kAvx512Bf16 = 1u << 5;
  return (eax & kAvx512Bf16) != 0;
}

/// Linux gives tile state to a process only on request; the answer holds for all its threads.
bool system_grants_tiles() {
  constexpr int64_t kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int64_t kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

/// Eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

PANDO_AMX void configure_tiles() {
  // Static: GCC 12 believes that only the first eight bytes are read, and would not store the rest.
  static constexpr TileConfig kConfig;
  _tile_loadconfig(&kConfig);
}

PANDO_AMX void release_tiles() { _tile_release(); }

}  // namespace

bool dots_available() {
  static const bool available = (hwy::SupportedTargets() & HWY_AVX3) != 0 && processor_has_dots();
  return available;
}

bool tiles_available() {
  static const bool available = dots_available() && processor_has_tiles() && system_grants_tiles();
  return available;
}

MatrixTiles::MatrixTiles(bool active) : active_(active) {
  if (active_) configure_tiles();
}
MatrixTiles::~MatrixTiles() {
  if (active_) release_tiles();
}

}  // namespace pando

#else

namespace pando {

bool dots_available() { return false; }
bool tiles_available() { return false; }
MatrixTiles::MatrixTiles(bool active) : active_(active) {}
MatrixTiles::~MatrixTiles() = default;

}  // namespace pando
#endif
