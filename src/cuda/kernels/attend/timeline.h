// The stages of a launch that a build with PANDO_TIMELINE takes the time of.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "cuda/kernels/attend/params.h"

namespace pando::cuda {

enum class Stage : int32_t {
  kBegin,      ///< the kernel's first instruction
  kRole,       ///< the consumers' first
  kDescribed,  ///< the scout has described its first tiles, those after Start::tiles
  kIssued,     ///< the loader has asked for the tile's K
  kQueries,    ///< the first unit's query rows are in shared memory
  kKeys,       ///< its first tile of K has come
  kScores,     ///< that tile's scores are there
  kWeights,    ///< and weights
  kTiles,      ///< the last tile's output is there
  kJoined,     ///< that of the other warpgroup too, where both had the same rows
  kExchanged,  ///< and that of the other thread block of a cluster
  kWritten,    ///< the last unit's rows are written, to out or to partials
  kPublished,  ///< and published
  kSources,    ///< the partials of the last merge job are there
  kEnd,
};
inline constexpr int kStages = static_cast<int>(Stage::kEnd) + 1;
inline constexpr std::array<std::string_view, kStages> kStageNames = {
    "begin", "role",   "described", "issued",  "queries",   "keys",    "scores", "weights",
    "tiles", "joined", "exchanged", "written", "published", "sources", "end"};

/// By thread block and consumer warpgroup, cycles since kBegin of the last launch on the current
/// device, but for those on pages smaller than a granule; 0: that stage was not met. Waits for the
/// device. Empty in builds without PANDO_TIMELINE.
std::vector<std::array<int64_t, kStages>> read_timeline(int thread_blocks);

}  // namespace pando::cuda
