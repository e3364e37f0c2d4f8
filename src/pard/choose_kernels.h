#pragma once

// The passes of choose() over a row, compiled once per vector width and picked at run time. All
// widths return the same bits; internal to choose.cpp and its tests.

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "logits.h"
#include "types.h"

namespace pard::detail {

// Passes work block by block, and skip blocks whose maximum rules them out.
inline constexpr Token block_size = 64;

constexpr std::size_t num_blocks(Token size) {
  return (static_cast<std::size_t>(size) + block_size - 1) / block_size;
}

// A place in the ranking by (logit descending, id ascending): the tokens at or before it are kept.
struct Cutoff {
  float logit;
  Token id;
};

inline constexpr Token any_id = std::numeric_limits<Token>::max();
inline constexpr Cutoff keep_all{-std::numeric_limits<float>::infinity(), any_id};

struct Row {
  const float* logits;
  Token size;
  const float* block_maxima;  // [num_blocks(size)]
  float max;
  Token argmax;
  float inverse_temperature;
};

// What a token weighs while a prefix of the ranking is measured. Weights are integers, so that a
// sum does not depend on its order. A token at -inf can never be chosen and weighs 0 in both.
enum class Measure : std::uint8_t {
  count,        // 1
  probability,  // floor(2^40 * exp((logit - max) / temperature)); max_vocab_size of them fit 64
                // bits
};

struct Candidate {
  float logit;
  Token id;
  std::uint64_t weight;
};

// Tokens by distance to the maximum, nearest first: each bin covers 1/64 of an octave of (max -
// logit) / temperature, from 2^-12 to 2^20; nearer and farther ones share the outer bins.
inline constexpr std::int32_t num_bins = 32 * 64;

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
