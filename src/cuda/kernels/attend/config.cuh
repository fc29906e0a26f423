// The shape of the attend kernel and its shared memory.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/attend/params.h"
#include "cuda/pipeline/ring.cuh"
#include "cuda/ptx/special_registers.cuh"

namespace pando::cuda {

inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr float kLog2E = 1.4426950408889634f;

/// What one instance of the kernel is made for.
template <class Element_, int HeadDim_, bool kByToken_ = false, bool kCapped_ = false,
          bool kFp8_ = false, bool kOneTile_ = false>
struct Config {
  using Element = Element_;
  static constexpr bool kByToken = kByToken_;  ///< see PageShape::by_token
  static constexpr bool kCapped = kCapped_;    ///< scores have a soft cap
  static constexpr bool kFp8 = kFp8_;          ///< K and V come as fp8: see convert.cuh
  /// Consumers of a thread block that has one tile: code of its own, in the kernels without
  /// variants. At a head_dim of 256 it would cost up to 15 %.
  static constexpr bool kOneTile = kOneTile_;
  static constexpr bool kHasOneTile =
      !kOneTile && !kByToken && !kCapped && !kFp8 && HeadDim_ <= 128;
  using OneTile = Config<Element, HeadDim_, kByToken, kCapped, kFp8, true>;
  static constexpr int kHeadDim = HeadDim_;
  /// Columns of its rows' output that a warpgroup computes: of one tile half of them.
  static constexpr int kColumns = kOneTile ? kHeadDim / 2 : kHeadDim;
  static constexpr int kHalves = kHeadDim / 64;  ///< parts of 64 dimensions, two of 128
  static constexpr int kSlotTokens = tokens_at_once(kHeadDim);  ///< of K or V in a slot of the ring
  static constexpr int kParts = kTileTokens / kSlotTokens;  ///< slots of a tile's K, and of its V
  static constexpr int kSlots = kHeadDim > 128 ? 4 : (kFp8 ? 4 : 5) * 128 / kHeadDim;
  /// Slots are taken in the order K0 K1 V0 K2 V1 ...: a tile's V beside the next one's K, which it
  /// is multiplied with. K is given back first, so each slot is asked for more than one tile's time
  /// before it is wanted; with five slots of K0 V0 K1 V1 ... it would be one. Tiles in parts have
  /// that order, in which a slot holds the same part of each.
  static constexpr bool kKeysAhead = kParts == 1;
  static constexpr int kFirstValues = kKeysAhead ? 2 : 1;  ///< slot of the first V
  /// Consumers ask for their first queries before their role is known. Those of narrow thread
  /// blocks want others.
  static constexpr bool kAsksAtOnce = !kFp8;
  /// Several warps of the producer ask for the first tile: see FirstTile.
  static constexpr bool kAsksFirst = !kByToken && !kFp8 && kParts == 1;
  static constexpr int kInfos = 8;  ///< tiles that are described ahead of their loads
  /// Units that are fetched ahead. Of fp8 none: there is no room beside its slots. Nor where tokens
  /// are copied one by one: the warp that would fetch them helps.
  static constexpr int kUnitsAhead = kFp8 || kByToken ? 0 : 2;
  static constexpr int kConsumers = 2;
  static constexpr int kConverters = kFp8 ? 1 : 0;
  static constexpr int kThreads = (kConsumers + 1 + kConverters) * 128;
  static constexpr int kConsumerWarps = kConsumers * 4;
  // A thread of each role has so many: 64 K together.
  static constexpr int kProducerRegisters = 56;
  static constexpr int kConverterRegisters = 40;
  static constexpr int kConsumerRegisters = kFp8 ? 208 : 224;
  /// Consumers that would keep more than fits: they look up or work out again what need not be
  /// kept.
  static constexpr bool kFewRegisters = kParts > 1 || (kFp8 && kHeadDim == 128);
  /// A slot holds one granule after another, of each 64 dimensions after 64. Copies of whole rows
  /// come so, and wgmma finds all of them at equal distances.
  static constexpr int kHalfBytes = kGranule * 128;
  static constexpr int kGranuleBytes = kHalfBytes * kHalves;
  static constexpr int kSlotBytes = kSlotTokens / kGranule * kGranuleBytes;
  /// Where the granule of a slot's token begins.
  __device__ static constexpr int granule_of(int token) { return token / kGranule * kGranuleBytes; }
  static constexpr int kRows = kConsumers * kBlockRows;
  // What the loaders bring in: granules of a slot, or rows of fp8 as they are.
  static constexpr int kLoadSlots = kFp8 ? 3 * 128 / kHeadDim : kSlots;
  static constexpr int kLoadHalves = kFp8 ? 1 : kHalves;
  static constexpr int kLoadRowBytes = kFp8 ? kHeadDim : 128;  ///< of a token, in a half
  static constexpr int kLoadHalfBytes = kGranule * kLoadRowBytes;
  static constexpr int kKvBytes = kFp8 ? 1 : 2;       ///< of an element in memory
  static constexpr int kLoaders = kByToken ? 3 : 2;   ///< warps: of K, of V, a helper of both
  static constexpr int kFillers = kByToken ? 64 : 1;  ///< threads that fill a slot
  static constexpr bool kHasNarrow = has_narrow_units(kHeadDim, kFp8);  ///< see narrow.cuh
  static constexpr int kHalfSlots = 2 * kSlots;  ///< of half the size, for fp8 as it is
  static_assert(!kFp8 || kParts == 1);
};

/// A warp's job: some rows of one merge, and its share of their sources.
struct MergeJob {
  int4 merge;       ///< block, kv_head, first source, sources
  uint32_t wanted;  ///< of the job's rows
  int32_t row;
};

/// A consumer warp's first merge jobs, fetched while there is something else to do.
struct FirstMerges {
  static constexpr int kJobs = 4;
  static constexpr int kSources = 64;  ///< of all jobs

  MergeJob jobs[kJobs];
  int4 sources[kSources];
};

/// Warps that hand their rows over to the other thread block of a cluster: half of the consumers.
inline constexpr int kHandingWarps = 4;

/// What the thread blocks of a cluster tell each other: see exchange.cuh.
struct ExchangeSignals {
  Signal open;                   ///< the other's ring may be written to
  Signal handed[kHandingWarps];  ///< a warp's rows are here

  __device__ void init(int consumer_warps) {
    open.init(consumer_warps);
    for (Signal& signal : handed) signal.init(1);
  }
};

/// A row's place in out and lse.
struct alignas(16) RowPlace {
  int64_t out, lse;

  __device__ static RowPlace of(const AttendParams& params, int64_t q_row, int32_t head) {
    return {q_row * params.out_row_stride + head * params.out_head_stride,
            q_row * params.q_heads + head};
  }
};

/// Positions that a row sees.
struct alignas(8) RowSpan {
  int32_t begin, end;
};

/// Tiles of fp8, as they lie in memory: [token][head_dim], swizzled where that has 128 bytes.
/// Nothing where there are none.
template <class C, bool kFp8 = C::kFp8>
struct Fp8Slots {};
template <class C>
struct Fp8Slots<C, true> {
  alignas(1024) uint8_t slots[C::kLoadSlots][kTileTokens * C::kHeadDim];
};

/// The rings of their slots, and what follows from their scales.
template <class C, bool kFp8 = C::kFp8>
struct Fp8Tiles {};
template <class C>
struct Fp8Tiles<C, true> {
  RingBarriers<C::kLoadSlots> ring;
  RingBarriers<C::kHalfSlots> narrow_ring;  ///< of SharedPlan::slots, each in two
  float into_cap[C::kConsumers];            ///< of each warpgroup's unit: with the scale of its K
};

/// A unit after a thread block's first, and its query rows: fetched while those before are
/// computed.
struct UnitAhead {
  Unit unit;
  Row rows[2][kBlockRows];  ///< of its blocks; beyond the last row of all, that
};
/// So many of them, and the ring that they come by.
template <int kCount>
struct UnitsAhead {
  RingBarriers<kCount> ring;
  UnitAhead slots[kCount];
};
template <>
struct UnitsAhead<0> {};

/// The kernel's shared memory.
template <class C>
struct SharedPlan {
  alignas(1024) uint8_t slots[C::kSlots][C::kSlotBytes];
  /// Each warpgroup's query rows, swizzled; at the end of a unit of one block, half of what the
  /// second's threads hand over to the same threads of the first.
  union Queries {
    uint8_t rows[C::kHalves][kBlockRows * 128];
    float4 handed[C::kHeadDim / 16][128];
  };
  alignas(1024) Queries q[C::kConsumers];
  Fp8Slots<C> fp8_slots;
  float4 handed_ends[128];                     ///< tops, sums
  Start start;                                 ///< of this thread block; its tiles are in info
  uint64_t epoch;                              ///< of this launch
  RowPlace places[C::kConsumers][kBlockRows];  ///< of each warpgroup's rows
  TileInfo info[C::kInfos];
  FirstMerges first_merges[C::kConsumerWarps];
  UnitsAhead<C::kUnitsAhead> ahead;
  RingBarriers<C::kSlots> ring;
  RingBarriers<C::kInfos> info_ring;
  RingBarriers<1> merge_ring;
  ExchangeSignals exchange;
  TreeRow tree_rows[C::kConsumers]
                   [kBlockRows];  ///< of each warpgroup's rows, where some have holes
  /// The visible ranges of each warpgroup's rows, where their registers are wanted for the output.
  RowSpan visible[C::kConsumers][C::kFewRegisters ? kBlockRows : 1];
  Fp8Tiles<C> fp8;
};

/// Where the loaders bring K and V to: slots and their ring. In narrow thread blocks fp8 is read
/// there; in others it is converted, into the ring that 16-bit elements come to at once.
template <class C, bool kNarrow>
struct Landing {
  static constexpr int kSlots = kNarrow ? C::kHalfSlots : C::kLoadSlots;

  __device__ static auto& ring(SharedPlan<C>& shared) {
    if constexpr (!C::kFp8) {
      return shared.ring;
    } else if constexpr (kNarrow) {
      return shared.fp8.narrow_ring;
    } else {
      return shared.fp8.ring;
    }
  }
  __device__ static uint8_t* slot(SharedPlan<C>& shared, int stage) {
    if constexpr (!C::kFp8) {
      return shared.slots[stage];
    } else if constexpr (kNarrow) {
      return shared.slots[0] + stage * (C::kSlotBytes / 2);
    } else {
      return shared.fp8_slots.slots[stage];
    }
  }
};

/// K and V as TMA sees them: boxes of up to 16 tokens of a page, and of 8.
struct TensorMaps {
  CUtensorMap k_big, v_big, k_small, v_small;
};

/// Which thread block of a cluster this is, 0 or 1.
__device__ __forceinline__ int cluster_rank() { return static_cast<int>(blockIdx.x % 2); }

/// A section of the schedule, `at` times 16 bytes from its start.
template <class T>
__device__ __forceinline__ const T* section(const AttendParams& params, int32_t at) {
  return reinterpret_cast<const T*>(params.schedule + int64_t{at} * 16);
}

/// The `nth` unit of the thread block: the first came with its start record.
__device__ __forceinline__ const Unit& nth_unit(const AttendParams& params, const Start& start,
                                                int32_t nth) {
  return nth == 0 ? start.unit : section<Unit>(params, start.units_at)[start.unit_begin + nth];
}

/// The start record of this thread block, in global memory.
__device__ __forceinline__ const Start& start_record(const AttendParams& params) {
  return *reinterpret_cast<const Start*>(params.schedule + ScheduleHeader::kStartsOffset +
                                         int64_t{sizeof(Start)} * blockIdx.x);
}

/// Brings what all warps begin with into shared memory, by one warp in one read: the first tiles'
/// descriptions to their places in the ring.
template <class C>
__device__ __forceinline__ void load_start(const AttendParams& params, SharedPlan<C>& shared) {
  constexpr int kHead = offsetof(Start, tiles) / sizeof(int4);
  constexpr int kWords = kHead + sizeof(TileInfo) / sizeof(int4) * Start::kTiles;
  static_assert(offsetof(Start, tiles) % sizeof(int4) == 0 && kWords < 64);
  const int lane = threadIdx.x % 32;
  const auto* const from = reinterpret_cast<const int4*>(&start_record(params));
  int4 words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i * 32 + lane < kWords) words[i] = __ldg(from + i * 32 + lane);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = i * 32 + lane;
    auto* const to = at < kHead ? reinterpret_cast<int4*>(&shared.start) + at
                                : reinterpret_cast<int4*>(&shared.info[0]) + at - kHead;
    if (at < kWords) *to = words[i];
  }
  if (lane == 31) {
    shared.epoch =
        __ldcg(reinterpret_cast<const unsigned long long*>(&params.control[Control::kLeft])) >>
        Control::kLaunchShift;
  }
}

/// threadIdx.x. Where the output takes most registers, a tile that is looked at granule by granule
/// works out anew what follows from it, rather than keep it. So does code for one tile, rather than
/// have the other code of its kernel keep it too.
template <class C>
__device__ __forceinline__ uint32_t this_thread() {
  if constexpr (C::kFewRegisters || C::kOneTile) return ptx::tid_x();
  return threadIdx.x;
}

/// Of a row's columns that a warpgroup computes the first.
template <class C>
__device__ __forceinline__ int32_t first_column(int consumer) {
  return C::kOneTile ? consumer * C::kColumns : 0;
}

/// Where the LSE of the partials stand.
template <class C>
__device__ __forceinline__ float* partial_lse(const AttendParams& params, const Start& start) {
  return params.partials + int64_t{start.partial_rows} * C::kHeadDim;
}

}  // namespace pando::cuda
