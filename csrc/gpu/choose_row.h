#pragma once

// choose() (see pard/choose.h) by the lanes of one block: the same token, bit for bit.
//
// The CPU finds where a filter cuts the ranking by a histogram and a selection. Lanes do it digit
// by digit: the place of a token in the ranking (logit descending, id ascending) is an integer, and
// each pass over the row weighs the tokens by the next digit of theirs, most significant first.
// Weights are integers, so their sums do not depend on the order of the lanes.

#include "lanes.h"
#include "pard/choose_arithmetic.h"
#include "pard/logits.h"
#include "round.h"

namespace pard::gpu {

using detail::Cutoff;
using detail::infinity;
using detail::Measure;
using detail::Tempering;

inline constexpr int group_size = 4;  // tokens a lane reads at once, those of one block of noise
inline constexpr int digit_bits = 11;
inline constexpr int num_digits = 1 << digit_bits;
inline constexpr int digits_per_span = 32;
inline constexpr int num_spans = num_digits / digits_per_span;

// A block's shared memory.
struct Scratch {
  float value[num_lanes];
  Token token[num_lanes];
  std::uint64_t weight[num_digits];  // by digit
  std::uint64_t span[num_spans];     // sums of neighbouring digits
  std::int32_t digit;
  std::int32_t unusable;
};

struct GpuRow {
  const void* data;
  DType dtype;
  Token size;
  bool aligned;  // groups of 16-bit logits may be read at once
};

PARD_DEVICE float widened(std::uint16_t bits, DType dtype) {
  using detail::bits_of;
  using detail::from_bits;
  if (dtype == DType::bf16) return from_bits<float>(std::uint32_t{bits} << 16);
  const std::uint32_t magnitude = bits & 0x7FFFU, sign = (bits & 0x8000U) << 16;
  float absolute = from_bits<float>((magnitude << 13) + ((127U - 15U) << 23));
  if (magnitude >= 0x7C00U) absolute = from_bits<float>((magnitude << 13) | 0x7F800000U);
  if (magnitude < 0x0400U) absolute = static_cast<float>(magnitude) * 0x1p-24F;
  return from_bits<float>(static_cast<std::uint32_t>(bits_of(absolute)) | sign);
}

// Tokens first .. first + 3 as floats; -inf behind the row's end.
PARD_DEVICE void load_group(const GpuRow& row, Token first, float (&out)[group_size]) {
  if (row.dtype == DType::f32) {
    const auto* in = static_cast<const float*>(row.data);
    PARD_UNROLL
    for (int i = 0; i < group_size; ++i) {
      out[i] = first + i < row.size ? in[first + i] : -infinity;
    }
    return;
  }
  const auto* in = static_cast<const std::uint16_t*>(row.data);
  if (row.aligned && first + group_size <= row.size) {
    struct alignas(8) Group {
      std::uint16_t bits[group_size];
    };
    const Group group = *reinterpret_cast<const Group*>(in + first);
    PARD_UNROLL
    for (int i = 0; i < group_size; ++i) out[i] = widened(group.bits[i], row.dtype);
    return;
  }
  PARD_UNROLL
  for (int i = 0; i < group_size; ++i) {
    out[i] = first + i < row.size ? widened(in[first + i], row.dtype) : -infinity;
  }
}

// Leaves the best of all lanes' (value, token) in the first place: highest value, then lowest id.
PARD_DEVICE void reduce_best(Scratch& scratch) {
  for (int half = num_lanes / 2; half > 0; half /= 2) {
    barrier();
    if (lane() < half) {
      const float other = scratch.value[lane() + half], own = scratch.value[lane()];
      const Token token = scratch.token[lane() + half];
      if (other > own || (other == own && token < scratch.token[lane()])) {
        scratch.value[lane()] = other;
        scratch.token[lane()] = token;
      }
    }
  }
  barrier();
}

// The maximum and the lowest id that has it; false where the row allows no choice.
PARD_DEVICE bool find_max(const GpuRow& row, Scratch& scratch, float& max, Token& argmax) {
  if (lane() == 0) scratch.unusable = 0;
  barrier();
  float best = -infinity;
  Token token = detail::any_id;
  bool unusable = false;
  for (Token first = lane() * group_size; first < row.size; first += num_lanes * group_size) {
    float logits[group_size];
    load_group(row, first, logits);
    PARD_UNROLL
    for (int i = 0; i < group_size; ++i) {
      unusable |= !(logits[i] < infinity);  // NaN or +inf
      if (logits[i] > best) {
        best = logits[i];
        token = first + i;
      }
    }
  }
  scratch.value[lane()] = best;
  scratch.token[lane()] = token;
  if (unusable) set_shared(scratch.unusable);
  reduce_best(scratch);
  max = scratch.value[0];
  argmax = scratch.token[0];
  const bool usable = scratch.unusable == 0 && max > -infinity;
  barrier();
  return usable;
}

// A token's place in the ranking, the likeliest first: its logit's bits, turned so that they order
// as unsigned integers do, then its id.
PARD_DEVICE std::uint64_t place_of(float logit, Token id) {
  const auto bits = static_cast<std::uint32_t>(detail::bits_of(logit + 0.0F));  // -0 ranks as 0
  const std::uint32_t descending = bits & 0x80000000U ? bits : ~bits & 0x7FFFFFFFU;
  return (std::uint64_t{descending} << 32) | static_cast<std::uint32_t>(id);
}

PARD_DEVICE Cutoff cutoff_at(std::uint64_t place) {
  const auto descending = static_cast<std::uint32_t>(place >> 32);
  const std::uint32_t bits = descending & 0x80000000U ? descending : ~descending & 0x7FFFFFFFU;
  return {detail::from_bits<float>(bits), static_cast<Token>(place & 0xFFFFFFFFU)};
}

// Sums of neighbouring digits, and their total in the first lane.
PARD_DEVICE std::uint64_t sum_spans(Scratch& scratch) {
  for (int span = lane(); span < num_spans; span += num_lanes) {
    std::uint64_t sum = 0;
    for (int i = 0; i < digits_per_span; ++i) sum += scratch.weight[span * digits_per_span + i];
    scratch.span[span] = sum;
  }
  barrier();
  std::uint64_t total = 0;
  if (lane() == 0) {
    for (int span = 0; span < num_spans; ++span) total += scratch.span[span];
  }
  return total;
}

// The first lane finds the digit in which the weights reach `missing`, and takes off those before
// it.
PARD_DEVICE int find_digit(const Scratch& scratch, std::uint64_t& missing) {
  int span = 0;
  for (; scratch.span[span] < missing; ++span) missing -= scratch.span[span];
  int digit = span * digits_per_span;
  for (; scratch.weight[digit] < missing; ++digit) missing -= scratch.weight[digit];
  return digit;
}

// The weight at which a filter ends the kept tokens.
PARD_DEVICE std::uint64_t share_of(std::uint64_t total, Measure measure,
                                   const SlotSampling& sampling) {
  if (measure == Measure::count) return static_cast<std::uint64_t>(sampling.top_k);
  const double share = static_cast<double>(total) * static_cast<double>(sampling.top_p);
  const auto whole = static_cast<std::uint64_t>(share);
  return whole > 1 ? whole : 1;
}

// Ends the kept tokens where their prefix first weighs share_of(total weight).
PARD_DEVICE Cutoff shortest_prefix(const GpuRow& row, Scratch& scratch, const Tempering& tempering,
                                   Cutoff kept, Measure measure, const SlotSampling& sampling) {
  std::uint64_t place = 0;    // of the last token kept, as far as it is known:
  std::uint64_t missing = 0;  // the weight still to be reached from there; the first lane's own
  int known = 64;             // bits from here up
  while (known > 0) {
    // 32 bits of logit in digits of 11, 11 and 10 bits, 22 of id in two of 11.
    const int lowest = known > 42 ? known - 11 : known == 42 ? 32 : known == 32 ? 11 : 0;
    const std::uint64_t mask = (std::uint64_t{1} << (lowest == 32 ? 10 : digit_bits)) - 1;
    for (int i = lane(); i < num_digits; i += num_lanes) scratch.weight[i] = 0;
    barrier();
    for (Token first = lane() * group_size; first < row.size; first += num_lanes * group_size) {
      float logits[group_size];
      load_group(row, first, logits);
      PARD_UNROLL
      for (int i = 0; i < group_size; ++i) {
        const Token id = first + i;
        if (id >= row.size || !detail::keeps(kept, logits[i], id)) continue;
        const std::uint64_t own = place_of(logits[i], id);
        if (known < 64 && own >> known != place >> known) continue;
        const std::uint64_t weight =
            detail::sum_of(detail::weight_of(tempering, measure, logits[i]));
        if (weight > 0) add_shared(scratch.weight[own >> lowest & mask], weight);
      }
    }
    barrier();
    const std::uint64_t total = sum_spans(scratch);
    if (lane() == 0) {
      if (known == 64) missing = share_of(total, measure, sampling);
      scratch.digit = known == 64 && missing >= total ? -1 : find_digit(scratch, missing);
    }
    barrier();
    const int digit = scratch.digit;
    if (digit < 0) return kept;
    place |= static_cast<std::uint64_t>(digit) << lowest;
    known = lowest;
  }
  return cutoff_at(place);
}

PARD_DEVICE Cutoff filter(const GpuRow& row, Scratch& scratch, const Tempering& tempering,
                          const SlotSampling& sampling) {
  Cutoff kept = detail::keep_all;
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 0 ? sampling.top_k == 0 : sampling.top_p == 1.0F) continue;
    const Measure measure = pass == 0 ? Measure::count : Measure::probability;
    kept = shortest_prefix(row, scratch, tempering, kept, measure, sampling);
  }
  if (sampling.log_min_p <= 0.0F) {
    const float threshold = tempering.max + sampling.temperature * sampling.log_min_p;
    if (threshold > kept.logit) kept = {threshold, detail::any_id};
  }
  return kept;
}

PARD_DEVICE float score(const Tempering& tempering, float logit, std::uint32_t bits) {
  return detail::tempered(tempering, logit) + noise::gumbel(bits);
}

// The token chosen at `position`, the same for every lane; -1 where the row allows no choice.
PARD_DEVICE Token choose_row(const GpuRow& row, const SlotSampling& sampling, std::int64_t position,
                             Scratch& scratch) {
  float max;
  Token argmax;
  if (!find_max(row, scratch, max, argmax)) return -1;
  if (sampling.temperature == 0.0F) return argmax;

  const Tempering tempering{max, sampling.inverse_temperature};
  const Cutoff kept = filter(row, scratch, tempering, sampling);
  const std::uint64_t seed = std::uint64_t{sampling.seed_high} << 32 | sampling.seed_low;

  // The likeliest token is kept by every filter: a good score to beat from the start.
  Token token = argmax;
  const noise::Philox likeliest =
      noise::block(seed, position, static_cast<std::uint32_t>(argmax) / 4);
  std::uint32_t bits = likeliest.word[0];
  PARD_UNROLL
  for (int i = 1; i < 4; ++i) bits = argmax % 4 == i ? likeliest.word[i] : bits;
  float best = score(tempering, max, bits);
  for (Token first = lane() * group_size; first < row.size; first += num_lanes * group_size) {
    float logits[group_size];
    load_group(row, first, logits);
    float top = logits[0];
    PARD_UNROLL
    for (int i = 1; i < group_size; ++i) top = logits[i] > top ? logits[i] : top;
    // Rounding is monotone: no score of the group exceeds the sum of the bounds.
    if (top < kept.logit || detail::tempered(tempering, top) + noise::gumbel_max < best) continue;
    const noise::Philox random =
        noise::block(seed, position, static_cast<std::uint32_t>(first) / group_size);
    PARD_UNROLL
    for (int i = 0; i < group_size; ++i) {
      const Token id = first + i;
      if (id >= row.size || !detail::keeps(kept, logits[i], id)) continue;
      const float own = score(tempering, logits[i], random.word[i]);
      if (own > best || (own == best && id < token)) {
        best = own;
        token = id;
      }
    }
  }
  scratch.value[lane()] = best;
  scratch.token[lane()] = token;
  reduce_best(scratch);
  const Token winner = scratch.token[0];
  barrier();
  return winner;
}

}  // namespace pard::gpu
