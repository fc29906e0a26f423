// The data of a case.
#include "cases/generate.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "cases/parallel.h"
#include "core/check.h"
#include "core/convert.h"
#include "core/mask.h"

namespace pando::cases {
namespace {

constexpr int64_t kChunk = 1 << 15;  // elements with one seed: small enough to spread over cores
constexpr float kLarge = 64;         // logits of about 1e4 at head_dim 128

enum Stream : uint64_t { kQ, kK, kV, kKeyTraits, kQueryTraits };

template <typename T>
T encode(float value, DType dtype) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (sizeof(T) == 1) {
    return float_to_e4m3(value);
  } else {
    return dtype == DType::kBF16 ? float_to_bf16(value) : float_to_f16(value);
  }
}

/// Calls body(T*) with the element type that holds `dtype`.
template <typename Body>
void with_elements(void* data, DType dtype, const Body& body) {
  if (dtype == DType::kF32) {
    body(static_cast<float*>(data));
  } else if (dtype == DType::kE4M3) {
    body(static_cast<uint8_t*>(data));
  } else {
    body(static_cast<uint16_t*>(data));
  }
}

void fill_normal(Buffer& buffer, int64_t count, DType dtype, float sigma, uint64_t seed) {
  parallel_for((count + kChunk - 1) / kChunk, [&](int64_t chunk) {
    Rng rng(mix_seed(seed, chunk));
    const int64_t end = std::min(count, (chunk + 1) * kChunk);
    with_elements(buffer.data(), dtype, [&]<typename T>(T* data) {
      for (int64_t i = chunk * kChunk; i < end; ++i)
        data[i] = encode<T>(rng.normal() * sigma, dtype);
    });
  });
}

void scale_run(void* data, int64_t begin, int64_t count, DType dtype, float by) {
  for (int64_t i = begin; i < begin + count; ++i) {
    store_element(data, i, dtype, load_element(data, i, dtype) * by);
  }
}

/// Large keys of both signs, zero keys, and keys equal to the one before them in the page.
void make_keys_adversarial(Case& problem, uint64_t seed) {
  const KvLayout kv = problem.kv();
  const DType dtype = problem.kv_dtype();
  parallel_for(kv.num_pages, [&](int64_t page) {
    Rng rng(mix_seed(seed, page));
    for (int32_t head = 0; head < kv.kv_heads; ++head) {
      for (int32_t slot = 0; slot < kv.page_tokens; ++slot) {
        const int64_t at = kv.offset(page, head, slot);
        const int64_t trait = rng.below(12);
        if (trait == 0) scale_run(problem.k.data(), at, kv.head_dim, dtype, kLarge);
        if (trait == 1) scale_run(problem.k.data(), at, kv.head_dim, dtype, -kLarge);
        if (trait == 2) scale_run(problem.k.data(), at, kv.head_dim, dtype, 0);
        if (trait == 3 && slot > 0) {
          const int64_t element = dtype_bytes(dtype);
          std::memcpy(problem.k.data() + at * element,
                      problem.k.data() + kv.offset(page, head, slot - 1) * element,
                      kv.head_dim * element);
        }
      }
    }
  });
}

int64_t q_elements(const Case& problem) {
  const int64_t rows = problem.tables.q_rows();
  if (rows == 0) return 0;
  return problem.q_offset(rows - 1, problem.spec.q_heads - 1) + problem.spec.head_dim;
}

void make_queries_adversarial(Case& problem, uint64_t seed) {
  const AttentionSpec& spec = problem.spec;
  Rng rng(seed);
  for (int64_t row = 0; row < problem.tables.q_rows(); ++row) {
    for (int64_t head = 0; head < spec.q_heads; ++head) {
      const int64_t trait = rng.below(6);
      const float by = trait == 0 ? 0.0f : trait == 1 ? kLarge : trait == 2 ? -kLarge : 1.0f;
      if (by != 1) {
        scale_run(problem.q.data(), problem.q_offset(row, head), spec.head_dim, spec.dtype, by);
      }
    }
  }
}

float unused_value(Unused with, int64_t index) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr std::array<float, 3> kMix = {kNan, kInf, -kInf};
  switch (with) {
    case Unused::kZero: return 0;
    case Unused::kNan: return kNan;
    case Unused::kInf: return kInf;
    case Unused::kNegativeInf: return -kInf;
    case Unused::kMixed: return kMix[index % 3];
  }
  return 0;
}

/// Marks the slots that a sequence holds, or only those that one of its rows sees.
std::vector<uint8_t> used_slots(const Case& problem, bool only_visible) {
  const Tables& tables = problem.tables;
  const AttentionSpec spec = problem.attention();
  std::vector<uint8_t> used(tables.num_pages * tables.page_tokens, 0);
  for (int32_t s = 0; s < tables.sequences(); ++s) {
    const auto mark = [&](int32_t begin, int32_t end) {
      for (int32_t t = begin; t < end; ++t) {
        const int64_t page = tables.page_ids[tables.page_indptr[s] + t / tables.page_tokens];
        used[page * tables.page_tokens + t % tables.page_tokens] = 1;
      }
    };
    if (!only_visible) {
      mark(0, tables.kv_len[s]);
      continue;
    }
    const int32_t q_len = tables.q_indptr[s + 1] - tables.q_indptr[s];
    for (int32_t row = 0; row < q_len; ++row) {
      const RowMask mask = row_mask(spec, tables.q_indptr[s] + row, row, q_len, tables.kv_len[s]);
      mark(mask.range.begin, mask.tree_begin);
      for (int32_t t = mask.tree_begin; t < mask.range.end; ++t) {
        if (mask.sees(t)) mark(t, t + 1);
      }
    }
  }
  return used;
}

}  // namespace

std::string_view data_kind_name(DataKind kind) {
  switch (kind) {
    case DataKind::kRandn: return "randn";
    case DataKind::kSmall: return "small";
    case DataKind::kAdversarial: return "adversarial";
  }
  return "unknown";
}

DataKind data_kind_from_name(std::string_view name) {
  for (const DataKind kind : {DataKind::kRandn, DataKind::kSmall, DataKind::kAdversarial}) {
    if (data_kind_name(kind) == name) return kind;
  }
  fail(ErrorCode::kInvalidArgument, "data: got \"{}\", want one of randn, small, adversarial",
       name);
}

std::vector<uint64_t> random_trees(const Tables& tables, Rng& rng) {
  std::vector<uint64_t> masks(tables.q_rows());
  for (int32_t s = 0; s < tables.sequences(); ++s) {
    uint64_t* const rows = masks.data() + tables.q_indptr[s];
    const int32_t q_len = tables.q_indptr[s + 1] - tables.q_indptr[s];
    for (int32_t node = 0; node < std::min(q_len, kMostTreeRows); ++node) {
      const int64_t parent = rng.between(-1, node - 1);
      rows[node] = (parent < 0 ? 0 : rows[parent]) | uint64_t{1} << node;
    }
  }
  return masks;
}

std::vector<float> random_sinks(int32_t q_heads, Rng& rng) {
  std::vector<float> sinks(q_heads);
  for (float& sink : sinks) sink = 3 * rng.normal();
  return sinks;
}

void set_fp8_scales(Case& problem) {
  problem.k_scale.clear();
  problem.v_scale.clear();
  for (int32_t head = 0; head < problem.spec.kv_heads; ++head) {
    problem.k_scale.push_back(0.9f / kFp8Sigma * static_cast<float>(3 + head % 3) / 4);
    problem.v_scale.push_back(1.1f / kFp8Sigma * static_cast<float>(4 - head % 2) / 4);
  }
}

void fill_data(Case& problem, const DataOptions& options) {
  const DType dtype = problem.spec.dtype;
  const DType kv_dtype = problem.kv_dtype();
  const float sigma = options.kind == DataKind::kSmall ? 1.0f / 64 : 1.0f;
  const int64_t q_count = q_elements(problem);
  const int64_t kv_count = problem.kv_elements();
  problem.q = Buffer(q_count * dtype_bytes(dtype));
  problem.k = Buffer(kv_count * dtype_bytes(kv_dtype));
  problem.v = Buffer(kv_count * dtype_bytes(kv_dtype));
  fill_normal(problem.q, q_count, dtype, sigma, mix_seed(options.seed, kQ));
  float kv_sigma = sigma;
  if (kv_dtype == DType::kE4M3) {
    set_fp8_scales(problem);
    kv_sigma *= kFp8Sigma;
  }
  fill_normal(problem.k, kv_count, kv_dtype, kv_sigma, mix_seed(options.seed, kK));
  fill_normal(problem.v, kv_count, kv_dtype, kv_sigma, mix_seed(options.seed, kV));
  if (options.kind == DataKind::kAdversarial) {
    make_keys_adversarial(problem, mix_seed(options.seed, kKeyTraits));
    make_queries_adversarial(problem, mix_seed(options.seed, kQueryTraits));
  }
  fill_unused(problem, options.unused);
}

void fill_unused(Case& problem, Unused with, bool invisible_too) {
  const KvLayout kv = problem.kv();
  const DType dtype = problem.kv_dtype();
  const std::vector<uint8_t> used = used_slots(problem, invisible_too);
  parallel_for(kv.num_pages, [&](int64_t page) {
    for (int32_t slot = 0; slot < kv.page_tokens; ++slot) {
      if (used[page * kv.page_tokens + slot]) continue;
      for (int32_t head = 0; head < kv.kv_heads; ++head) {
        const int64_t at = kv.offset(page, head, slot);
        for (int32_t d = 0; d < kv.head_dim; ++d) {
          store_element(problem.k.data(), at + d, dtype, unused_value(with, page + slot + d));
          store_element(problem.v.data(), at + d, dtype, unused_value(with, page + slot + d + 1));
        }
      }
    }
  });
}

}  // namespace pando::cases
