#pragma once

// What choosing computes for one token, on every CPU and GPU: like noise.h, arithmetic that gives
// the same bits everywhere, and free of branches so that loops over it become vector instructions.

#include <cstdint>
#include <limits>

#include "noise.h"
#include "types.h"

namespace pard::detail {

using noise::bits_of;
using noise::from_bits;
using noise::select;

inline constexpr float infinity = std::numeric_limits<float>::infinity();

// A place in the ranking by (logit descending, id ascending): the tokens at or before it are kept.
struct Cutoff {
  float logit;
  Token id;
};

inline constexpr Token any_id = std::numeric_limits<Token>::max();
inline constexpr Cutoff keep_all{-std::numeric_limits<float>::infinity(), any_id};

// What a token weighs while a prefix of the ranking is measured. Weights are integers, so that a
// sum does not depend on its order. A token at -inf can never be chosen and weighs 0 in both.
enum class Measure : std::uint8_t {
  count,        // 1
  probability,  // floor(2^40 * exp((logit - max) / temperature)); max_vocab_size of them fit 64
                // bits
};

// How the logits of a row become scores.
struct Tempering {
  float max;
  float inverse_temperature;
};

// Tokens by distance to the maximum, nearest first: each bin covers 1/64 of an octave of (max -
// logit) / temperature, from 2^-12 to 2^20; nearer and farther ones share the outer bins.
inline constexpr std::int32_t num_bins = 32 * 64;

// Whether the ranking has this token at or before the cutoff. Bitwise, so that it stays free of
// branches.
PARD_INLINE bool keeps(Cutoff kept, float logit, Token id) {
  return (logit > kept.logit) | ((logit == kept.logit) & (id <= kept.id));
}

PARD_INLINE float tempered(const Tempering& row, float logit) {
  return (logit - row.max) * row.inverse_temperature;
}

PARD_INLINE std::int32_t bin_of(float tempered_logit) {
  constexpr std::int32_t low = 0x39800000;  // 2^-12
  constexpr std::int32_t high = low + (num_bins - 1) * (1 << 17);
  const std::int32_t distance = bits_of(-tempered_logit) & 0x7FFFFFFF;
  const std::int32_t capped = distance < high ? distance : high;
  return ((capped > low ? capped : low) - low) >> 17;
}

inline constexpr float weightless = -29.0F;  // 2^40 * exp(-29) < 1

// floor(2^40 * exp(x)) for x <= 0, as its high and low 20 bits: 32-bit integers suit every vector
// unit.
struct Weight {
  std::int32_t high;
  std::int32_t low;
};

PARD_INLINE Weight weight_of(float x) {
  constexpr float log2_e = 1.44269504F;
  constexpr float ln2_high = 0x1.63p-1F;  // its multiples are exact
  constexpr float ln2_low = -2.12194440e-4F;
  const float clamped = select(x > weightless, x, weightless);
  const auto exponent = static_cast<std::int32_t>(clamped * log2_e - 0.5F);  // nearest
  const auto n = static_cast<float>(exponent);
  const float r = (clamped - n * ln2_high) - n * ln2_low;
  float q = 0.00138201355F;
  q = q * r + 0.00836868584F;
  q = q * r + 0.0416682735F;
  q = q * r + 0.166665211F;
  q = q * r + 0.49999994F;
  const float scaled = ((r * r) * q + r + 1.0F) * from_bits<float>((exponent + 127 + 20) << 23);
  // Splitting at the point is exact, so the two truncations floor the whole.
  const auto high = static_cast<std::int32_t>(scaled);
  return {high, static_cast<std::int32_t>((scaled - static_cast<float>(high)) * 0x1p20F)};
}

PARD_INLINE Weight weight_of(const Tempering& row, Measure measure, float logit) {
  if (measure == Measure::count) return {0, logit > -infinity ? 1 : 0};
  return weight_of(tempered(row, logit));
}

PARD_INLINE std::uint64_t sum_of(Weight weight) {
  return (static_cast<std::uint64_t>(weight.high) << 20) + static_cast<std::uint64_t>(weight.low);
}

// exp(x) for x <= 0 by its Taylor series, which 14 terms exhaust in double once |r| <= ln(2) / 2.
PARD_INLINE double exp_of(double x) {
  constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  const double floor_of_interest = -700.0;  // vanishes beside the maximum's 1
  const double clamped = select(x > floor_of_interest, x, floor_of_interest);
  const auto exponent = static_cast<std::int32_t>(clamped * 1.4426950408889634 - 0.5);  // nearest
  const double r = (clamped - exponent * ln2_high) - exponent * ln2_low;
  double sum = 1.0;
#pragma GCC unroll 13
  for (int term = 13; term > 0; --term) sum = 1.0 + sum * r * (1.0 / term);
  return sum * from_bits<double>((std::int64_t{exponent} + 1023) * (std::int64_t{1} << 52));
}

}  // namespace pard::detail
