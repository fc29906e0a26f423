// One input of the lab's kernels: in host memory for the oracle, in device memory for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "cases/rng.h"
#include "core/convert.h"
#include "lab/lab.h"
#include "reference/oracle.h"

namespace pando::lab {

struct Shape {
  int32_t group;
  int32_t kv_heads;
  int32_t prefix_tokens;
  std::vector<int32_t> suffix_tokens;  ///< of each sequence
};

/// What a kernel has left.
struct LabOutput {
  std::vector<uint16_t> out;  ///< with the rows after its end that nobody may write; so all of them
  std::vector<float> lse, partial_o, partial_lse;
};

/// Random data, and NaN before, between and after the tokens and the queries.
class LabCase {
 public:
  static constexpr uint8_t kPoison = 0xff;  ///< NaN; what a kernel must overwrite

  LabCase(const Shape& shape, uint64_t seed, float magnitude = 1) : shape_(shape) {
    suffix_begin_.resize(shape.suffix_tokens.size() + 1);
    std::partial_sum(shape.suffix_tokens.begin(), shape.suffix_tokens.end(),
                     suffix_begin_.begin() + 1);
    const int64_t token = token_elements();
    const int64_t tokens = 3 * kGuard + shape.prefix_tokens + suffix_begin_.back();
    k_.assign(tokens * token, kNan);
    v_.assign(tokens * token, kNan);
    q_.assign(rows_with_guard() * kHeadDim, kNan);
    cases::Rng rng(seed);
    const auto fill = [&](std::vector<uint16_t>& to, int64_t begin, int64_t count, float factor) {
      for (int64_t i = begin; i < begin + count; ++i) to[i] = float_to_bf16(rng.normal() * factor);
    };
    fill(q_, 0, rows() * kHeadDim, magnitude);
    for (auto* const rows : {&k_, &v_}) {
      const float factor = rows == &k_ ? magnitude : 1;
      fill(*rows, kGuard * token, shape.prefix_tokens * token, factor);
      fill(*rows, suffix_at() * token, suffix_begin_.back() * token, factor);
    }
    make_tables();
  }

  int32_t sequences() const { return static_cast<int32_t>(shape_.suffix_tokens.size()); }
  int32_t q_heads() const { return shape_.group * shape_.kv_heads; }

  /// The same problem with pages of one token.
  Problem problem() const {
    Problem problem;
    problem.batch = {q_indptr_, kv_len_, page_indptr_, page_ids_, 1};
    problem.spec.q_heads = q_heads();
    problem.spec.kv_heads = shape_.kv_heads;
    problem.spec.head_dim = kHeadDim;
    problem.q = {q_.data(), 0, 0};
    problem.k = k_.data();
    problem.v = v_.data();
    problem.kv = KvLayout::nhd(static_cast<int64_t>(k_.size()) / shape_.kv_heads / kHeadDim, 1,
                               shape_.kv_heads, kHeadDim);
    return problem;
  }

  /// Without the pointers.
  Batch sizes() const {
    Batch batch;
    batch.sequences = sequences();
    batch.q_heads = q_heads();
    batch.kv_heads = shape_.kv_heads;
    batch.prefix_tokens = shape_.prefix_tokens;
    batch.longest_suffix =
        *std::max_element(shape_.suffix_tokens.begin(), shape_.suffix_tokens.end());
    return batch;
  }

  /// The tensors, with what lies around them.
  std::span<const std::byte> q() const { return bytes_of(q_); }
  std::span<const std::byte> k() const { return bytes_of(k_); }
  std::span<const std::byte> v() const { return bytes_of(v_); }
  std::span<const std::byte> suffix_begin() const { return bytes_of(suffix_begin_); }
  /// Where prefix and suffixes begin in k and in v, in elements.
  int64_t prefix_offset() const { return kGuard * token_elements(); }
  int64_t suffix_offset() const { return suffix_at() * token_elements(); }
  int64_t rows() const { return int64_t{sequences()} * q_heads(); }
  int64_t rows_with_guard() const { return rows() + kGuard * shape_.kv_heads; }

  /// Whether nothing was written after the end of any output.
  bool kept_inside(const LabOutput& got) const {
    const auto kept = [](const auto& memory, int64_t end) {
      const auto after = std::as_bytes(std::span(memory)).subspan(end * sizeof(memory[0]));
      return std::all_of(after.begin(), after.end(),
                         [](std::byte byte) { return byte == std::byte{kPoison}; });
    };
    return kept(got.out, rows() * kHeadDim) && kept(got.lse, rows()) &&
           kept(got.partial_o, rows() * kHeadDim) && kept(got.partial_lse, rows());
  }

 private:
  static constexpr int64_t kGuard = 72;  // tokens, packed rows of a kv head: more than a tile
  static constexpr uint16_t kNan = 0x7fc0;

  template <class T>
  static std::span<const std::byte> bytes_of(const std::vector<T>& from) {
    return std::as_bytes(std::span(from));
  }
  int64_t token_elements() const { return int64_t{shape_.kv_heads} * kHeadDim; }
  int64_t suffix_at() const { return 2 * kGuard + shape_.prefix_tokens; }

  void make_tables() {
    for (int32_t b = 0; b < sequences(); ++b) {
      q_indptr_.push_back(b + 1);
      kv_len_.push_back(shape_.prefix_tokens + shape_.suffix_tokens[b]);
      for (int32_t i = 0; i < shape_.prefix_tokens; ++i) {
        page_ids_.push_back(static_cast<int32_t>(kGuard) + i);
      }
      for (int32_t i = 0; i < shape_.suffix_tokens[b]; ++i) {
        page_ids_.push_back(static_cast<int32_t>(suffix_at()) + suffix_begin_[b] + i);
      }
      page_indptr_.push_back(static_cast<int32_t>(page_ids_.size()));
    }
  }

  Shape shape_;
  std::vector<int32_t> suffix_begin_;
  std::vector<int32_t> q_indptr_{0}, kv_len_, page_indptr_{0}, page_ids_;
  std::vector<uint16_t> q_, k_, v_;
};

/// A LabCase in device memory. `Memory` is one allocation there, as cases::DeviceBuffer.
template <class Memory>
class LabMemory {
 public:
  explicit LabMemory(const LabCase& problem)
      : q_(problem.q()),
        k_(problem.k()),
        v_(problem.v()),
        suffix_begin_(problem.suffix_begin()),
        out_(problem.rows_with_guard() * kHeadDim * sizeof(Element)),
        lse_(problem.rows_with_guard() * sizeof(float)),
        partial_o_(problem.rows_with_guard() * kHeadDim * sizeof(float)),
        partial_lse_(problem.rows_with_guard() * sizeof(float)),
        batch_(problem.sizes()) {
    for (Memory* const memory : {&out_, &lse_, &partial_o_, &partial_lse_}) {
      memory->fill(LabCase::kPoison);
    }
    const auto elements = [](const Memory& from) {
      return reinterpret_cast<const Element*>(from.data());
    };
    const auto floats = [](Memory& from) { return reinterpret_cast<float*>(from.data()); };
    batch_.q = elements(q_);
    batch_.prefix_k = elements(k_) + problem.prefix_offset();
    batch_.prefix_v = elements(v_) + problem.prefix_offset();
    batch_.suffix_k = elements(k_) + problem.suffix_offset();
    batch_.suffix_v = elements(v_) + problem.suffix_offset();
    batch_.suffix_begin = reinterpret_cast<const int32_t*>(suffix_begin_.data());
    batch_.out = reinterpret_cast<Element*>(out_.data());
    batch_.lse = floats(lse_);
    batch_.partial_o = floats(partial_o_);
    batch_.partial_lse = floats(partial_lse_);
  }

  const Batch& batch() const { return batch_; }
  LabOutput download() const {
    LabOutput got;
    const auto fetch = [](const Memory& from, auto& to) {
      to.resize(from.size() / sizeof(to[0]));
      from.download(std::as_writable_bytes(std::span(to)));
    };
    fetch(out_, got.out);
    fetch(lse_, got.lse);
    fetch(partial_o_, got.partial_o);
    fetch(partial_lse_, got.partial_lse);
    return got;
  }

 private:
  Memory q_, k_, v_, suffix_begin_, out_, lse_, partial_o_, partial_lse_;
  Batch batch_;
};

}  // namespace pando::lab
