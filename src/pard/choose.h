#pragma once

#include <cstdint>
#include <optional>

#include "logits.h"
#include "types.h"

namespace pard {

// The widest row there may be.
inline constexpr std::int64_t max_vocab_size = std::int64_t{1} << 22;

// How a token is chosen from a row. Filters act on the tempered distribution in this order: top_k,
// top_p, min_p. All three cut the same ranking (logit descending, then id ascending), so a filter
// is a place in it.
struct SamplingParams {
  float temperature = 0.0F;  // 0: plain argmax; else >= min_temperature
  std::int32_t top_k = 0;    // keep the k first tokens; 0: all
  float top_p = 1.0F;        // keep the shortest prefix holding this much probability, in (0, 1]
  float min_p = 0.0F;        // drop tokens less likely than this share of the likeliest, in [0, 1]
  std::uint64_t seed = 0;    // together with a position, the key of the noise

  static constexpr float min_temperature = 1e-4F;

  // Throws InvalidArgument naming the first parameter out of its range.
  void validate() const;
};

// The token the target emits at `position` of its sequence (the prompt's first token is at 0) when
// its model says `row`:
//
//   argmax over kept tokens of (row[id] - max(row)) / temperature + gumbel(seed, position, id)
//
// with the lowest id winning ties; at temperature 0 the noise and the filters are off. The noise
// depends on nothing but seed, position and token, so a draft's row and a target's row meet the
// same noise at the same position: that is what makes verification an equality and the output
// independent of draft, K, batch and schedule (Gumbel-max coupling). The result is the same bit for
// bit on every CPU.
//
// Tokens are kept by exact rules: top_p adds up floor(2^40 * exp((row[token] - max(row)) /
// temperature)), and min_p keeps row[token] >= max(row) + temperature * log(min_p).
//
// This runs on the CPU; a row of a device is copied. Throws InvalidArgument where params are out of
// range, LogitsError where the row holds NaN or +inf or nothing but -inf.
Token choose(const LogitsRow& row, const SamplingParams& params, std::int64_t position);

// What choose() compares: the score of a token that is kept. At temperature 0 it is row[token] -
// max(row). Throws like log_probability().
double score(const LogitsRow& row, const SamplingParams& params, std::int64_t position,
             Token token);

// log softmax(row)[token], of the plain row (no temperature, no filter), in nats. Throws like
// choose(), and InvalidArgument where the row has no such token.
double log_probability(const LogitsRow& row, Token token);

// Writes the row's elements as floats to out[0 .. row.size), in the host's memory.
void widen(const LogitsRow& row, float* out);

}  // namespace pard
