#include "choose_kernels.h"

#include <cstring>

#include "choose_arithmetic.h"

namespace pard::detail {
namespace {

// Plain loops over a fixed count, without lambdas or library calls: they inline into callers
// compiled for wider vectors (see the end of the file) and become theirs.

// A block's logits: in place, or in `padded` with -inf after the row's end.
PARD_INLINE const float* load_block(const float* logits, Token size, Token first, float* padded) {
  if (first + block_size <= size) return logits + first;
  for (Token i = 0; i < block_size; ++i) {
    padded[i] = first + i < size ? logits[first + i] : -infinity;
  }
  return padded;
}

// The maximum of 64, 32 of which are already folded onto the others. Halving keeps every step a
// vector operation; a running maximum would be a chain.
PARD_INLINE float fold_max(float (&lanes)[block_size / 2]) {
#pragma GCC unroll 5
  for (Token half = block_size / 4; half > 0; half /= 2) {
    for (Token i = 0; i < half; ++i) {
      lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    }
  }
  return lanes[0];
}

PARD_INLINE void widen_row(const LogitsRow& row, std::int64_t first, std::int64_t count,
                           float* out) {
  const auto* in = static_cast<const std::uint16_t*>(row.data) + first;
  if (row.dtype == DType::bf16) {
    for (std::int64_t i = 0; i < count; ++i) {
      out[i] = from_bits<float>(static_cast<std::int32_t>(std::uint32_t{in[i]} << 16));
    }
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t half = in[i], magnitude = half & 0x7FFF;
    const std::int32_t normal = (magnitude << 13) + ((127 - 15) << 23);
    const std::int32_t special = (magnitude << 13) | 0x7F800000;
    const float subnormal = static_cast<float>(magnitude) * 0x1p-24F;
    const float finite = select(magnitude < 0x0400, subnormal, from_bits<float>(normal));
    const float absolute = select(magnitude < 0x7C00, finite, from_bits<float>(special));
    const auto sign = static_cast<std::int32_t>(std::uint32_t{in[i] & 0x8000U} << 16);
    out[i] = from_bits<float>(bits_of(absolute) | sign);
  }
}

PARD_INLINE bool row_block_maxima(const float* row, Token size, float* maxima) {
  std::int32_t nan_lanes[block_size / 2] = {};
  for (Token first = 0; first < size; first += block_size) {
    float padded[block_size], lanes[block_size / 2];
    const float* logits = load_block(row, size, first, padded);
    for (Token i = 0; i < block_size / 2; ++i) {
      const float low = logits[i], high = logits[i + block_size / 2];
      nan_lanes[i] |= __builtin_isunordered(low, high) ? 1 : 0;
      lanes[i] = low > high ? low : high;
    }
    maxima[first / block_size] = fold_max(lanes);
  }
  std::int32_t nan = 0;
  for (std::int32_t lane : nan_lanes) nan |= lane;
  return nan == 0;
}

struct Best {
  float score;
  Token token;
};

PARD_INLINE void score_block(const Row& row, Cutoff kept, std::uint64_t seed, std::int64_t position,
                             Token block, Best& best) {
  // Rounding is monotone, so no score of the block exceeds the sum of a bound on its logits and one
  // on its noise: at first any noise, then, drawn but not yet transformed, that of its least bits.
  const float logit_bound = tempered(row, row.block_maxima[block]);
  if (logit_bound + noise::gumbel_max < best.score || row.block_maxima[block] < kept.logit) return;

  const Token first = block * block_size;
  std::uint32_t bits[block_size];
  for (Token i = 0; i < block_size / 4; ++i) {
    const auto index = static_cast<std::uint32_t>(first / 4 + i);
    const noise::Philox random = noise::block(seed, position, index);
    for (Token j = 0; j < 4; ++j) bits[4 * i + j] = random.word[j];
  }
  std::uint32_t least = ~std::uint32_t{0};
  for (Token i = 0; i < block_size; ++i) least = bits[i] < least ? bits[i] : least;
  if (logit_bound + noise::gumbel(least) < best.score) return;

  float padded[block_size], scores[block_size];
  const float* logits = load_block(row.logits, row.size, first, padded);
  for (Token i = 0; i < block_size; ++i) {
    const float score = tempered(row, logits[i]) + noise::gumbel(bits[i]);
    scores[i] = select(keeps(kept, logits[i], first + i), score, -infinity);
  }
  float lanes[block_size / 2];
  for (Token i = 0; i < block_size / 2; ++i) {
    const float low = scores[i], high = scores[i + block_size / 2];
    lanes[i] = low > high ? low : high;
  }
  const float top = fold_max(lanes);
  if (top < best.score) return;
  Token i = 0;
  while (scores[i] != top) ++i;
  if (top > best.score || first + i < best.token) best = {top, first + i};
}

PARD_INLINE Token row_best(const Row& row, Cutoff kept, std::uint64_t seed, std::int64_t position) {
  Best best{-infinity, any_id};
  const Token likeliest = row.argmax / block_size;  // goes first, for a good score to beat
  score_block(row, kept, seed, position, likeliest, best);
  const auto count = static_cast<Token>(num_blocks(row.size));
  for (Token block = 0; block < count; ++block) {
    if (block != likeliest) score_block(row, kept, seed, position, block, best);
  }
  return best.token;
}

// Whether no token of the block is kept and weighs anything.
PARD_INLINE bool skips(const Row& row, Cutoff kept, Measure measure, float block_max) {
  return block_max < kept.logit || block_max == -infinity ||
         (measure == Measure::probability && tempered(row, block_max) <= weightless);
}

PARD_INLINE std::uint64_t histogram_of(const Row& row, Cutoff kept, Measure measure,
                                       std::uint64_t* bins) {
  std::uint64_t total = 0;
  for (Token first = 0; first < row.size; first += block_size) {
    if (skips(row, kept, measure, row.block_maxima[first / block_size])) continue;
    float padded[block_size];
    const float* logits = load_block(row.logits, row.size, first, padded);
    std::int32_t bin[block_size], high[block_size], low[block_size];
    for (Token i = 0; i < block_size; ++i) {
      const std::int32_t mask = keeps(kept, logits[i], first + i) ? -1 : 0;
      const Weight weight = weight_of(row, measure, logits[i]);
      bin[i] = bin_of(tempered(row, logits[i]));
      high[i] = weight.high & mask;
      low[i] = weight.low & mask;
    }
    Weight sum{};  // at most 64 * 2^20 each
    for (Token i = 0; i < block_size; ++i) sum.high += high[i];
    for (Token i = 0; i < block_size; ++i) sum.low += low[i];
    total += sum_of(sum);
    for (Token i = 0; i < block_size; ++i) bins[bin[i]] += sum_of({high[i], low[i]});
  }
  return total;
}

PARD_INLINE std::uint64_t row_histogram(const Row& row, Cutoff kept, Measure measure,
                                        std::uint64_t* bins) {
  // One loop for each measure: a loop that asks which is not vectorised.
  return measure == Measure::count ? histogram_of(row, kept, Measure::count, bins)
                                   : histogram_of(row, kept, Measure::probability, bins);
}

PARD_INLINE void row_gather(const Row& row, Cutoff kept, Measure measure, std::int32_t bin,
                            std::vector<Candidate>& out) {
  for (Token first = 0; first < row.size; first += block_size) {
    const float block_max = row.block_maxima[first / block_size];
    if (skips(row, kept, measure, block_max) || bin_of(tempered(row, block_max)) > bin) continue;
    float padded[block_size];
    const float* logits = load_block(row.logits, row.size, first, padded);
    std::uint8_t hits[block_size];
    for (Token i = 0; i < block_size; ++i) {
      const bool in_bin = bin_of(tempered(row, logits[i])) == bin;
      hits[i] = in_bin & keeps(kept, logits[i], first + i);
    }
    for (Token group = 0; group < block_size; group += 8) {
      std::uint64_t any;
      std::memcpy(&any, hits + group, sizeof(any));
      if (any == 0) continue;
      for (Token i = group; i < group + 8; ++i) {
        const std::uint64_t weight = hits[i] ? sum_of(weight_of(row, measure, logits[i])) : 0;
        if (weight > 0) out.push_back({logits[i], first + i, weight});
      }
    }
  }
}

PARD_INLINE double row_sum_exp(const Row& row) {
  double lanes[block_size] = {};
  float padded[block_size];
  for (Token first = 0; first < row.size; first += block_size) {
    const float* logits = load_block(row.logits, row.size, first, padded);
    for (Token i = 0; i < block_size; ++i) lanes[i] += exp_of(double{logits[i]} - double{row.max});
  }
  double sum = 0.0;
  for (double lane : lanes) sum += lane;
  return sum;
}

// One set of kernels per vector width. (target_clones would do this by ifunc, which sanitizers
// break.)

#define PARD_KERNELS(isa, target)                                                               \
  namespace isa {                                                                               \
  target void widen(const LogitsRow& row, std::int64_t first, std::int64_t count, float* out) { \
    widen_row(row, first, count, out);                                                          \
  }                                                                                             \
  target bool block_maxima(const float* logits, Token size, float* maxima) {                    \
    return row_block_maxima(logits, size, maxima);                                              \
  }                                                                                             \
  target Token best(const Row& row, Cutoff kept, std::uint64_t seed, std::int64_t position) {   \
    return row_best(row, kept, seed, position);                                                 \
  }                                                                                             \
  target std::uint64_t histogram(const Row& row, Cutoff kept, Measure measure,                  \
                                 std::uint64_t* bins) {                                         \
    return row_histogram(row, kept, measure, bins);                                             \
  }                                                                                             \
  target void gather(const Row& row, Cutoff kept, Measure measure, std::int32_t bin,            \
                     std::vector<Candidate>& out) {                                             \
    row_gather(row, kept, measure, bin, out);                                                   \
  }                                                                                             \
  target double sum_exp(const Row& row) { return row_sum_exp(row); }                            \
  constexpr Kernels kernels{#isa, widen, block_maxima, best, histogram, gather, sum_exp};       \
  }

PARD_KERNELS(generic, )
#if defined(__x86_64__)
PARD_KERNELS(avx2, __attribute__((target("avx2"))))
PARD_KERNELS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#endif

}  // namespace

std::span<const Kernels> available_kernels() {
#if defined(__x86_64__)
  static constexpr Kernels all[] = {generic::kernels, avx2::kernels, avx512::kernels};
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  static const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return std::span(all).first(has_avx512 ? 3 : has_avx2 ? 2 : 1);
#else
  static constexpr Kernels all[] = {generic::kernels};
  return all;
#endif
}

}  // namespace pard::detail
