#pragma once

// The noise of sampling, as a function of (seed, position, token) and nothing else.
//
// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) turns the
// three into 32 random bits; two logarithms turn those into a standard Gumbel variate. Everything
// is integer arithmetic and single float additions, multiplications and conversions, each rounded
// by itself: every CPU, vector width and GPU gives the same bits. That holds only while no compiler
// fuses a multiplication with an addition, so whatever includes this header is compiled with
// -ffp-contract=off (nvcc: -fmad=false) and never with -ffast-math.

#include <cstdint>

#include "types.h"

#if defined(__CUDACC__) || defined(__HIPCC__)
#define PARD_INLINE __host__ __device__ __forceinline__
#else
#define PARD_INLINE inline __attribute__((always_inline))
#endif

namespace pard::noise {

struct Philox {
  std::uint32_t word[4];
};

// One Philox block: 128 random bits from a 128-bit counter and a 64-bit key.
PARD_INLINE Philox philox(Philox counter, std::uint32_t key0, std::uint32_t key1) {
  std::uint32_t c0 = counter.word[0], c1 = counter.word[1];
  std::uint32_t c2 = counter.word[2], c3 = counter.word[3];
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = std::uint64_t{0xD2511F53U} * c0;
    const std::uint64_t right = std::uint64_t{0xCD9E8D57U} * c2;
    c0 = static_cast<std::uint32_t>(right >> 32) ^ c1 ^ key0;
    c2 = static_cast<std::uint32_t>(left >> 32) ^ c3 ^ key1;
    c1 = static_cast<std::uint32_t>(right);
    c3 = static_cast<std::uint32_t>(left);
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return {{c0, c1, c2, c3}};
}

// Keeps this use of Philox apart from any other under the same seed.
inline constexpr std::uint32_t domain = 0x70617264U;  // "pard"

// Four neighbouring token ids share a block: token t owns word t % 4 of block t / 4.
PARD_INLINE Philox block(std::uint64_t seed, std::int64_t position, std::uint32_t index) {
  const auto place = static_cast<std::uint64_t>(position);
  return philox(
      {{index, static_cast<std::uint32_t>(place), static_cast<std::uint32_t>(place >> 32), domain}},
      static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
}

template <class To, class From>
PARD_INLINE To from_bits(From bits) {
  static_assert(sizeof(To) == sizeof(From));
  To value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

PARD_INLINE std::int32_t bits_of(float value) { return from_bits<std::int32_t>(value); }
PARD_INLINE std::int64_t bits_of(double value) { return from_bits<std::int64_t>(value); }

// A choice without a branch: a ternary makes some compilers branch around the arithmetic that feeds
// it, and a loop with branches is not vectorised.
template <class Float>
PARD_INLINE Float select(bool condition, Float yes, Float no) {
  const auto mask = -static_cast<decltype(bits_of(yes))>(condition);
  return from_bits<Float>((bits_of(yes) & mask) | (bits_of(no) & ~mask));
}

// log(1 + f) for f in [-1/3, 1/3], to about 1e-7 of its value: f - f^2/2 + f^3 * polynomial.
PARD_INLINE float log1p_reduced(float f) {
  float p = 0.138207644F;
  p = p * f - 0.151221856F;
  p = p * f + 0.140421689F;
  p = p * f - 0.164723247F;
  p = p * f + 0.200079307F;
  p = p * f - 0.250042379F;
  p = p * f + 0.333332658F;
  return f + f * f * (p * f - 0.5F);
}

// A positive normal float as (1 + fraction) * 2^exponent, 1 + fraction in [2/3, 4/3).
struct Reduced {
  float fraction;
  std::int32_t exponent;
};

PARD_INLINE Reduced reduce(float value) {
  constexpr std::int32_t two_thirds = 0x3F2AAAAB;
  const std::int32_t exponent = (bits_of(value) - two_thirds) >> 23;
  return {from_bits<float>(bits_of(value) - exponent * (1 << 23)) - 1.0F, exponent};
}

inline constexpr float ln2 = 0.693147181F;

// log of a positive normal float.
PARD_INLINE float log(float value) {
  const Reduced reduced = reduce(value);
  return static_cast<float>(reduced.exponent) * ln2 + log1p_reduced(reduced.fraction);
}

// The standard Gumbel variate of 32 random bits x: -log(E), E = -log(1 - w), w = (x + 1/2) / 2^32.
//
// The winners are the large variates, those of small w. There E is close to w, so it is computed
// from w itself, which a float holds to full relative precision. Elsewhere 1 - w comes from the
// complement ~x, exact at its own small end.
PARD_INLINE float gumbel(std::uint32_t x) {
  constexpr float ulp = 0x1p-32F;
  const float w = (static_cast<float>(x) + 0.5F) * ulp;
  const Reduced rest = reduce((static_cast<float>(~x) + 0.5F) * ulp);
  const float fraction = select(rest.exponent == 0, -w, rest.fraction);
  return -log(-(static_cast<float>(rest.exponent) * ln2 + log1p_reduced(fraction)));
}

// gumbel(0): gumbel() never rises with x (checked over all 2^32), so no noise is larger.
inline constexpr float gumbel_max = 0x1.6dfb52p+4F;

PARD_INLINE float gumbel(std::uint64_t seed, std::int64_t position, Token token) {
  const auto id = static_cast<std::uint32_t>(token);
  return gumbel(block(seed, position, id / 4).word[id % 4]);
}

}  // namespace pard::noise
