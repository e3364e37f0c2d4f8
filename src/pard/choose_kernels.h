#pragma once

// The passes of choose() over a row, compiled once per vector width and picked at run time. All
// widths return the same bits; internal to choose.cpp and its tests.

#include <cstdint>
#include <span>
#include <vector>

#include "choose_arithmetic.h"
#include "logits.h"
#include "types.h"

namespace pard::detail {

// Passes work block by block, and skip blocks whose maximum rules them out.
inline constexpr Token block_size = 64;

constexpr std::size_t num_blocks(Token size) {
  return (static_cast<std::size_t>(size) + block_size - 1) / block_size;
}

struct Row : Tempering {
  const float* logits;
  Token size;
  const float* block_maxima;  // [num_blocks(size)]
  Token argmax;
};

struct Candidate {
  float logit;
  Token id;
  std::uint64_t weight;
};

struct Kernels {
  const char* name;

  // Converts elements [first, first + count) of a 16-bit row to float.
  void (*widen)(const LogitsRow& row, std::int64_t first, std::int64_t count, float* out);

  // Writes the maximum of every block; returns whether the row is free of NaN. With a NaN maxima
  // are arbitrary.
  bool (*block_maxima)(const float* logits, Token size, float* maxima);

  // The kept token of the highest tempered logit plus noise.
  Token (*best)(const Row& row, Cutoff kept, std::uint64_t seed, std::int64_t position);

  // Adds the weights of the kept tokens to the bins; returns their sum.
  std::uint64_t (*histogram)(const Row& row, Cutoff kept, Measure measure, std::uint64_t* bins);

  // Appends the kept tokens of one bin that weigh anything, by ascending id.
  void (*gather)(const Row& row, Cutoff kept, Measure measure, std::int32_t bin,
                 std::vector<Candidate>& out);

  // The sum of exp(logit - max) in double.
  double (*sum_exp)(const Row& row);
};

// Every set this CPU can run, the slowest and most portable first.
std::span<const Kernels> available_kernels();

}  // namespace pard::detail
