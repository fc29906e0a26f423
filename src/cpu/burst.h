// Bursts of pure arithmetic and pure reading, to measure what this machine can do at best.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pando {

/// Multiply-adds in registers; returns the FLOPs done. `sink` keeps the compiler honest.
int64_t arithmetic_burst(int64_t rounds, float& sink);
/// The same with AVX-512 dot products of bf16 pairs, where dots_available().
int64_t dot_burst(int64_t rounds, float& sink);
/// Reads `bytes` (a multiple of 1024) from memory.
float read_burst(const std::byte* from, int64_t bytes);

}  // namespace pando
