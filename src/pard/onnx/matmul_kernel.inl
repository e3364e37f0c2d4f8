// The body of matmul_kernel_*.cpp, each compiled for other vector instructions. It calls nothing
// that is inline elsewhere: the linker might take such a function from here for all of the program.
//
// PARD_WIDTH: integers of a vector register. PARD_ROWS: how many rows' sums, of integers and of
// floats, fit into the registers together.

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <type_traits>
#include <utility>

#include "matmul_kernel.h"

namespace pard {

namespace {

constexpr int width = PARD_WIDTH;
constexpr int most_rows = PARD_ROWS;

using Floats = float __attribute__((vector_size(4 * width)));
using Ints = std::int32_t __attribute__((vector_size(4 * width)));
using Bytes = std::uint8_t __attribute__((vector_size(4 * width)));  // four for each column
using Shorts = std::uint16_t __attribute__((vector_size(4 * width)));
using Narrow = std::uint8_t __attribute__((vector_size(width)));  // one for each column
using SignedNarrow = std::int8_t __attribute__((vector_size(width)));

template <class Vector>
inline Vector load(const void* data) {
  Vector value;
  __builtin_memcpy(&value, data, sizeof(Vector));
  return value;
}
inline Floats all_of(float value) { return value - Floats{}; }
inline Ints all_of(std::int32_t value) { return value - Ints{}; }

// a * b + c, rounded once: on machines without such an instruction too.
inline Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  Floats sum;
  for (int i = 0; i < width; ++i) sum[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return sum;
#endif
}

// float16 that are finite.
inline Floats load_halves(const std::byte* data) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
  return _mm512_maskz_cvtph_ps(0xFFFF, halves);
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
#elif defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(reinterpret_cast<const std::uint8_t*>(data))));
#else
  Floats values;
  for (int i = 0; i < width; ++i) {
    std::uint16_t half = 0;
    __builtin_memcpy(&half, data + 2 * i, sizeof(half));
    const std::uint32_t magnitude = half & 0x7FFFU;
    const std::uint32_t bits = (magnitude << 13) + ((127 - 15) << 23);
    float value = static_cast<float>(magnitude) * 0x1p-24F;  // where it is subnormal
    if (magnitude >= 0x0400) __builtin_memcpy(&value, &bits, sizeof(value));
    values[i] = (half & 0x8000U) != 0 ? -value : value;
  }
  return values;
#endif
}

// Integers of one byte, signed or not. Compilers take them apart where this is left to them.
template <class Bytes>
inline Floats load_bytes(const std::byte* data) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
  constexpr bool is_signed = std::is_same_v<Bytes, SignedNarrow>;
  constexpr __mmask16 all = 0xFFFF;  // the compiler warns of the forms without
  return _mm512_maskz_cvtepi32_ps(all, is_signed ? _mm512_maskz_cvtepi8_epi32(all, bytes)
                                                 : _mm512_maskz_cvtepu8_epi32(all, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(data));
  constexpr bool is_signed = std::is_same_v<Bytes, SignedNarrow>;
  return _mm256_cvtepi32_ps(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
#else
  return __builtin_convertvector(load<Bytes>(data), Floats);
#endif
}

inline Floats load_scales(ScaleType type, const std::byte* data) {
  if (type == ScaleType::float32) return load<Floats>(data);
  return type == ScaleType::float16 ? load_halves(data) : load_bytes<SignedNarrow>(data);
}

inline Bytes low_half(const Bytes& bytes) { return bytes & 0x0F; }
inline Bytes high_half(const Bytes& bytes) {
  return reinterpret_cast<Bytes>(reinterpret_cast<Shorts>(bytes) >> 4) & 0x0F;
}

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
// Adds the products of unsigned weights below 16 and a row's integers, in pairs.
inline Shorts add_products(const Shorts& sums, const Bytes& weights, std::int32_t quad) {
  const __m256i pairs =
      _mm256_maddubs_epi16(reinterpret_cast<__m256i>(weights), _mm256_set1_epi32(quad));
  return sums + reinterpret_cast<Shorts>(pairs);
}
#else
// Adds, for every column, the four products of unsigned weights and a row's integers.
template <int bits>
inline Ints add_products(const Ints& sums, const Bytes& weights, std::int32_t quad) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums),
                                                    reinterpret_cast<__m512i>(weights),
                                                    _mm512_set1_epi32(quad)));
#elif defined(__AVXVNNI__)
  return reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sums),
                                                        reinterpret_cast<__m256i>(weights),
                                                        _mm256_set1_epi32(quad)));
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  return vusdotq_s32(sums, weights, vreinterpretq_s8_s32(vdupq_n_s32(quad)));
#elif defined(__ARM_FEATURE_DOTPROD)
  // Those of 8 bits become signed; sum_group starts accordingly.
  const Bytes moved = bits == 8 ? weights ^ 0x80 : weights;
  return vdotq_s32(sums, vreinterpretq_s8_u8(moved), vreinterpretq_s8_s32(vdupq_n_s32(quad)));
#else
  const auto quads = reinterpret_cast<Ints>(weights);
  Ints total = sums;
  for (int k = 0; k < 4; ++k) {
    total += (quads >> (8 * k) & 0xFF) * (quad << (24 - 8 * k) >> 24);
  }
  return total;
#endif
}
#endif

// For every row and column, the sum of (weight - 8 or 128) * integer over a group, exact. `values`
// are the rows' integers, from -127 to 127; `starts` are their sums times -8 or -128.
//
// Mostly a vector of weights meets every row before the next is loaded, so no sum waits for itself.
template <int bits, int quads, int rows>
inline void sum_group(const std::byte* packed, const std::int32_t* values,
                      const std::int32_t* starts, Ints* sums) {
  constexpr int num_loaded = bits == 8 ? quads : quads / 2;
  const auto loaded = [&](int i) {
    return load<Bytes>(packed + i * static_cast<int>(sizeof(Bytes)));
  };
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
  // Sums of 16 bits hold two products of at most 15 * 127, eight times; weights of 8 bits are
  // multiplied half by half. Sums wait for themselves but briefly, and registers are few: row by
  // row.
  Bytes weights[quads];
  const auto total = [&](int row, short factor) {
    Shorts pairs{};
    for (int i = 0; i < quads; ++i) {
      pairs = add_products(pairs, weights[i], values[row * quads + i]);
    }
    return reinterpret_cast<Ints>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(pairs), _mm256_set1_epi16(factor)));
  };
  for (int i = 0; i < num_loaded; ++i) {
    weights[i] = low_half(loaded(i));
    if constexpr (bits == 4) weights[num_loaded + i] = high_half(loaded(i));
  }
  for (int r = 0; r < rows; ++r) sums[r] = all_of(starts[r]) + total(r, 1);
  if constexpr (bits == 8) {
    for (int i = 0; i < num_loaded; ++i) weights[i] = high_half(loaded(i));
    for (int r = 0; r < rows; ++r) sums[r] += total(r, 16);
  }
#else
#if defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
  constexpr bool is_centered = bits == 8;
#else
  constexpr bool is_centered = false;
#endif
  for (int r = 0; r < rows; ++r) sums[r] = all_of(is_centered ? 0 : starts[r]);
  const auto add = [&](const Bytes& weights, int quad) {
    for (int r = 0; r < rows; ++r) {
      sums[r] = add_products<bits>(sums[r], weights, values[r * quads + quad]);
    }
  };
#pragma GCC unroll 8
  for (int i = 0; i < num_loaded; ++i) {
    if constexpr (bits == 8) {
      add(loaded(i), i);
    } else {
      add(low_half(loaded(i)), i);
      add(high_half(loaded(i)), num_loaded + i);
    }
  }
#endif
}

// Weights are asked for so many bytes before they are read. Left to themselves processors ask too
// late: a single row took a tenth to a third longer.
constexpr int prefetch_ahead = 2048;
constexpr int cache_line = 64;

struct TileTask {
  const PackedMatrix& weights;
  const std::byte* blocks;  // of the tile
  const std::byte* panel;
  const float* start;  // an addend for every column of the tile
  float* out;
  std::int64_t stride;
};

template <int bits, int quads, bool has_offsets, int rows>
void multiply_tile(const TileTask& task) {
  constexpr int group_size = 4 * quads;
  const PackedMatrix& weights = task.weights;
  const ScaleType type = weights.scales;
  const bool minima = weights.offsets == PackedMatrix::Offsets::minima;
  const int scale_bytes = width * bytes_of(type);
  const bool is_factored = type == ScaleType::factored;
  const int blocks_per_span = factor_span / weights.block;
  const std::int64_t num_blocks = weights.num_blocks();
  const int groups_per_block = weights.block / group_size;
  constexpr float half = 1 << (bits - 1);

  Floats sums[rows];
  for (int r = 0; r < rows; ++r) sums[r] = load<Floats>(task.start);
  const std::byte* next = task.blocks;
  const std::byte* panel = task.panel;
  Floats scale_factors{};
  Floats minimum_factors{};
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    if (is_factored && (b & (blocks_per_span - 1)) == 0) {
      scale_factors = load_halves(next);
      next += 2 * width;
      if (has_offsets && minima) {
        minimum_factors = load_halves(next);
        next += 2 * width;
      }
    }
    Floats scales = load_scales(type, next);
    next += scale_bytes;
    if (is_factored) scales *= scale_factors;
    Floats offsets{};
    if constexpr (has_offsets) {
      if (minima) {
        Floats minimum = load_scales(type, next);
        next += scale_bytes;
        if (is_factored) minimum *= minimum_factors;
        offsets = multiply_add(scales, all_of(half), minimum);
      } else {
        offsets = scales * (half - load_bytes<Narrow>(next));
        next += width;
      }
    }
    for (int g = 0; g < groups_per_block; ++g) {
      const std::byte* const packed = next;
      next += width * group_size * bits / 8;
      for (int at = 0; at < static_cast<int>(next - packed); at += cache_line) {
        __builtin_prefetch(packed + prefetch_ahead + at);
      }
      const auto values = reinterpret_cast<const std::int32_t*>(panel);
      const auto row_scales = reinterpret_cast<const float*>(values + rows * quads);
      const auto starts = reinterpret_cast<const std::int32_t*>(row_scales + rows);
      const auto scaled_sums = reinterpret_cast<const float*>(starts + rows);
      Ints products[rows];
      sum_group<bits, quads, rows>(packed, values, starts, products);
      for (int r = 0; r < rows; ++r) {
        const Floats scaled = __builtin_convertvector(products[r], Floats) * row_scales[r];
        sums[r] = multiply_add(scaled, scales, sums[r]);
        if constexpr (has_offsets) {
          sums[r] = multiply_add(offsets, all_of(scaled_sums[r]), sums[r]);
        }
      }
      panel = reinterpret_cast<const std::byte*>(scaled_sums + rows);
    }
  }
  for (int r = 0; r < rows; ++r) {
    __builtin_memcpy(task.out + r * task.stride, &sums[r], sizeof(Floats));
  }
}

using MultiplyTile = void (*)(const TileTask&);

// [of 8 bits][in groups of 32][with offsets][rows - 1]
template <int bits, int quads, bool has_offsets, int... less>
MultiplyTile pick(int rows, std::integer_sequence<int, less...>) {
  static constexpr MultiplyTile by_rows[] = {multiply_tile<bits, quads, has_offsets, less + 1>...};
  return by_rows[rows - 1];
}

template <int bits, int quads>
MultiplyTile pick(bool has_offsets, int rows) {
  constexpr std::make_integer_sequence<int, most_rows> counts;
  return has_offsets ? pick<bits, quads, true>(rows, counts)
                     : pick<bits, quads, false>(rows, counts);
}

MultiplyTile pick(const PackedMatrix& weights, int rows) {
  const bool has_offsets = weights.offsets != PackedMatrix::Offsets::none;
  if (weights.bits == 4) {
    return weights.block < 32 ? pick<4, 4>(has_offsets, rows) : pick<4, 8>(has_offsets, rows);
  }
  return weights.block < 32 ? pick<8, 4>(has_offsets, rows) : pick<8, 8>(has_offsets, rows);
}

void multiply(const PackedMatrix& weights, std::int64_t tile, const std::byte* panel, int count,
              const float* bias, float* out, std::int64_t stride) {
  const std::int64_t first = tile * width;
  const std::int64_t left = weights.num_columns - first;
  float start[width] = {};
  for (int i = 0; bias != nullptr && i < width && i < left; ++i) start[i] = bias[first + i];
  TileTask task{weights,     weights.blocks + static_cast<std::size_t>(tile) * weights.tile_bytes(),
                panel,       start,
                out + first, stride};
  float whole[most_rows * width];
  const bool is_cut = left < width;
  if (is_cut) {
    task.out = whole;
    task.stride = width;
  }
  pick(weights, count)(task);
  for (int r = 0; is_cut && r < count; ++r) {
    for (int i = 0; i < left; ++i) out[r * stride + first + i] = whole[r * width + i];
  }
}

// A group of floats becomes integers, a scale and sums.
template <int size>
void round_group(const float* row, int bits_of_weights, std::int8_t* values, float* scale,
                 std::int32_t* start, float* scaled_sum) {
  constexpr int count = size / width;
  constexpr std::int32_t infinite = 0x7F800000;  // the bits of larger numbers are larger
  Ints largest{};
  for (int i = 0; i < count; ++i) {
    const Ints bits = load<Ints>(row + i * width) & 0x7FFFFFFF;
    largest = bits > largest ? bits : largest;
  }
  std::int32_t bits = 0;
  for (int i = 0; i < width; ++i) bits = largest[i] > bits ? largest[i] : bits;
  float most = 0;
  __builtin_memcpy(&most, &bits, sizeof(most));
  if (bits >= infinite) most = __builtin_nanf("");
  *scale = most / 127.0F;
  const bool is_zero = !(most > 1.0e-30F);  // or NaN
  const float factor = is_zero ? 0 : 127.0F / most;
  if (is_zero && most == most) *scale = 0;
  constexpr float to_integer = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  Ints total{};
  for (int i = 0; i < count; ++i) {
    const Floats moved = load<Floats>(row + i * width) * factor + to_integer;
    const Ints rounded = reinterpret_cast<Ints>(moved) - 0x4B400000;
    const Ints kept = is_zero ? Ints{} : rounded;
    total += kept;
    const Narrow narrow = __builtin_convertvector(kept, Narrow);
    __builtin_memcpy(values + i * width, &narrow, sizeof(narrow));
  }
  std::int32_t sum = 0;
  for (int i = 0; i < width; ++i) sum += total[i];
  *start = -sum * (1 << (bits_of_weights - 1));
  *scaled_sum = *scale * static_cast<float>(sum);
}

template <int size>
void round_rows_in(const PackedMatrix& weights, const float* rows, std::int64_t stride, int count,
                   std::byte* panel) {
  const std::int64_t num_groups = weights.num_groups();
  for (std::int64_t g = 0; g < num_groups; ++g) {
    const auto values = reinterpret_cast<std::int8_t*>(panel);
    const auto scales = reinterpret_cast<float*>(values + count * size);
    const auto starts = reinterpret_cast<std::int32_t*>(scales + count);
    const auto scaled_sums = reinterpret_cast<float*>(starts + count);
    const std::int64_t left = weights.depth - g * size;
    for (int r = 0; r < count; ++r) {
      const float* row = rows + r * stride + g * size;
      float padded[size] = {};
      if (left < size) {
        for (std::int64_t i = 0; i < left; ++i) padded[i] = row[i];
        row = padded;
      }
      round_group<size>(row, weights.bits, values + r * size, scales + r, starts + r,
                        scaled_sums + r);
    }
    panel = reinterpret_cast<std::byte*>(scaled_sums + count);
  }
}

void round_rows(const PackedMatrix& weights, const float* rows, std::int64_t stride, int count,
                std::byte* panel) {
  if (weights.block < 32) {
    round_rows_in<16>(weights, rows, stride, count, panel);
  } else {
    round_rows_in<32>(weights, rows, stride, count, panel);
  }
}

}  // namespace

}  // namespace pard
