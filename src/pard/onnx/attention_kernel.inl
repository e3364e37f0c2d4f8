// The body of attention_kernel_*.cpp, each compiled for other vector instructions. It calls nothing
// that is inline elsewhere: the linker might take such a function from here for all of the program.
//
// PARD_WIDTH: floats of a vector register, at most AttentionRows::max_count. PARD_TILE: how many
// such of sums fit into the registers, with one more to multiply with.

#include <utility>

#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "attention_kernel.h"

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define PARD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC before 12
#define PARD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Integers{__VA_ARGS__})
#endif

namespace pard {

namespace {

constexpr int width = PARD_WIDTH;
constexpr int block = 64;  // keys whose scores are kept at a time
constexpr int tile = PARD_TILE;
constexpr int few = 2;  // rows that are faster one by one

using Vector = float __attribute__((vector_size(4 * width)));
using Integers = std::int32_t __attribute__((vector_size(4 * width)));

constexpr float lowest = -3.0e38F;  // the score of a hidden key: finite, so that none makes a NaN

inline Vector load(const float* data) {
  Vector value;
  __builtin_memcpy(&value, data, sizeof(Vector));
  return value;
}
inline void store(float* data, const Vector& value) {
  __builtin_memcpy(data, &value, sizeof(Vector));
}
// Every lane this value. Subtracting zero changes nothing, not even -0, so compilers leave it out.
inline Vector all_of(float value) { return value - Vector{}; }

// a * b + c, rounded once where the machine can: said by hand, so that every sum does alike.
inline Vector multiply_add(const Vector& a, const Vector& b, const Vector& c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}
inline Vector multiply_add(float a, const Vector& b, const Vector& c) {
  return multiply_add(all_of(a), b, c);
}
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline Vector max_of(const Vector& a, const Vector& b) { return b > a ? b : a; }  // a if b is NaN

// e^x for x <= 88, within 2 units in the last place: 2^n times a polynomial of the rest.
inline Vector exp_of(const Vector& x) {
  const Vector clamped = x < -87.0F ? all_of(-87.0F) : x;  // NaN stays
  constexpr float to_integer = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector n = multiply_add(1.44269504F, clamped, all_of(to_integer)) - to_integer;
  // ln 2 in two parts
  const Vector r = multiply_add(2.12194440e-4F, n, multiply_add(-0.693359375F, n, clamped));
  Vector y = multiply_add(1.9875691500e-4F, r, all_of(1.3981999507e-3F));
  y = multiply_add(y, r, all_of(8.3334519073e-3F));
  y = multiply_add(y, r, all_of(4.1665795894e-2F));
  y = multiply_add(y, r, all_of(1.6666665459e-1F));
  y = multiply_add(y, r, all_of(5.0000001201e-1F));
  y = multiply_add(y, r * r, r) + 1.0F;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  const Vector result = y * reinterpret_cast<Vector>(power);
  return x < -87.0F ? Vector{} : result;
}

// tanh(score / softcap) * softcap
inline Vector capped(const Vector& score, float softcap) {
  const Vector x = score / softcap;
  const Vector doubled = x > 15.0F ? all_of(30.0F) : 2.0F * x;  // where tanh is 1
  const Vector far = 1.0F - 2.0F / (exp_of(doubled) + 1.0F);
  const Vector near = x - x * x * x / 3.0F;  // there the other cancels
  return softcap * (x * x < 1.0F / 4096 ? near : far);
}

// The sum of `width` values, in the same order for floats as for Vectors of them.
template <class T>
inline T sum_of(T* values) {
  for (int n = width / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) values[i] += values[i + n];
  }
  return values[0];
}

// Swaps the lanes of a whose index has the bit h with those of b whose index has not.
template <int h, int... lane>
inline void exchange(Vector& a, Vector& b, std::integer_sequence<int, lane...>) {
  const Vector low = PARD_SHUFFLE(a, b, ((lane & h) != 0 ? width + lane - h : lane)...);
  const Vector high = PARD_SHUFFLE(a, b, ((lane & h) != 0 ? width + lane : lane + h)...);
  a = low;
  b = high;
}

template <int h>
inline void transpose(Vector* rows) {
  if constexpr (h < width) {
    for (int i = 0; i < width; ++i) {
      if ((i & h) == 0) {
        exchange<h>(rows[i], rows[i + h], std::make_integer_sequence<int, width>());
      }
    }
    transpose<2 * h>(rows);
  }
}

// Lanes are rows: a key's element meets the elements of all queries at once, and no sum runs across
// lanes, so that a row's bits do not depend on the others.
void attend_together(const AttentionRows& rows, int first, int count, const AttentionHead& head) {
  const int dim = head.head_dim;
  Vector queries[AttentionRows::max_head_dim];  // [head_dim, row]
  Vector sums[AttentionRows::max_head_dim];
  Integers visible{};
  std::int64_t fewest = rows.num_keys[first];
  std::int64_t most = fewest;
  for (int i = 0; i < count; ++i) {
    const std::int64_t num_keys = rows.num_keys[first + i];
    fewest = num_keys < fewest ? num_keys : fewest;
    most = num_keys > most ? num_keys : most;
    visible[i] = static_cast<std::int32_t>(num_keys);
  }
  for (int d = 0; d < dim; ++d) {
    Vector query{};
    for (int i = 0; i < count; ++i) query[i] = rows.queries[first + i][d] * head.scale;
    queries[d] = query;
    sums[d] = Vector{};
  }
  Vector scores[block];
  Vector highest = all_of(lowest);
  Vector total{};
  for (std::int64_t begin = 0; begin < most; begin += block) {
    const int n = static_cast<int>(most - begin < block ? most - begin : block);
    const float* keys = head.keys + begin * dim;
    const float* values = head.values + begin * dim;
    int s = 0;
    for (; s + tile <= n; s += tile) {
      const float* key = keys + s * dim;
      Vector tiled[tile] = {};
      for (int d = 0; d < dim; ++d) {
        const Vector query = queries[d];
        for (int j = 0; j < tile; ++j) tiled[j] = multiply_add(key[j * dim + d], query, tiled[j]);
      }
      for (int j = 0; j < tile; ++j) scores[s + j] = tiled[j];
    }
    for (; s < n; ++s) {
      Vector score{};
      for (int d = 0; d < dim; ++d) score = multiply_add(keys[s * dim + d], queries[d], score);
      scores[s] = score;
    }
    if (head.softcap > 0) {
      for (s = 0; s < n; ++s) scores[s] = capped(scores[s], head.softcap);
    }
    // Keys behind these are hidden from some rows.
    const int shown = static_cast<int>(fewest <= begin      ? 0
                                       : fewest - begin < n ? fewest - begin
                                                            : n);
    const Integers seen = visible - static_cast<std::int32_t>(begin);
    for (s = shown; s < n; ++s) scores[s] = s < seen ? scores[s] : all_of(lowest);
    const Vector before = highest;
    for (s = 0; s < n; ++s) highest = max_of(highest, scores[s]);
    const Vector shrink = exp_of(before - highest);
    Vector weights[width] = {};  // sums of every width-th
    for (s = 0; s < n; ++s) {
      scores[s] = exp_of(scores[s] - highest);
      weights[s % width] += scores[s];
    }
    total = multiply_add(total, shrink, sum_of(weights));
    int d = 0;
    for (; d + tile <= dim; d += tile) {
      Vector tiled[tile] = {};
      for (s = 0; s < shown; ++s) {
        const Vector weight = scores[s];
        const float* value = values + s * dim + d;
        for (int j = 0; j < tile; ++j) tiled[j] = multiply_add(value[j], weight, tiled[j]);
      }
      for (; s < n; ++s) {
        const Vector weight = scores[s];
        const float* value = values + s * dim + d;
        for (int j = 0; j < tile; ++j) {  // a hidden value may be no number
          tiled[j] = multiply_add(s < seen ? all_of(value[j]) : Vector{}, weight, tiled[j]);
        }
      }
      for (int j = 0; j < tile; ++j) sums[d + j] = multiply_add(sums[d + j], shrink, tiled[j]);
    }
    for (; d < dim; ++d) {
      Vector sum{};
      for (s = 0; s < n; ++s) {
        const float value = values[s * dim + d];
        sum = multiply_add(s < seen ? all_of(value) : Vector{}, scores[s], sum);
      }
      sums[d] = multiply_add(sums[d], shrink, sum);
    }
  }
  for (int d = 0; d < dim; ++d) {
    const Vector output = sums[d] / total;
    for (int i = 0; i < count; ++i) rows.outputs[first + i][d] = output[i];
  }
}

// Lanes are keys, and then the elements of values: for rows too few to fill a Vector. Every sum has
// the order it has above, so that the bits are the same.
void attend_alone(const float* query_row, float* output, std::int64_t num_keys,
                  const AttentionHead& head) {
  const int dim = head.head_dim;
  const int whole = dim - dim % width;  // the rest goes one by one
  alignas(64) float query[AttentionRows::max_head_dim];
  alignas(64) float sums[AttentionRows::max_head_dim];
  for (int d = 0; d < dim; ++d) {
    query[d] = query_row[d] * head.scale;
    sums[d] = 0;
  }
  alignas(64) float scores[block];
  float highest = lowest;
  float total = 0;
  for (std::int64_t begin = 0; begin < num_keys; begin += block) {
    const int n = static_cast<int>(num_keys - begin < block ? num_keys - begin : block);
    const float* keys = head.keys + begin * dim;
    const float* values = head.values + begin * dim;
    Vector most = all_of(highest);
    for (int first = 0; first < n; first += width) {
      const float* rows[width];  // behind the last key, the last one again
      for (int i = 0; i < width; ++i) rows[i] = keys + (first + i < n ? first + i : n - 1) * dim;
      Vector score{};
      for (int d = 0; d < whole; d += width) {
        Vector columns[width];
        for (int i = 0; i < width; ++i) columns[i] = load(rows[i] + d);
        transpose<1>(columns);
        for (int i = 0; i < width; ++i) score = multiply_add(query[d + i], columns[i], score);
      }
      for (int d = whole; d < dim; ++d) {
        Vector column;
        for (int i = 0; i < width; ++i) column[i] = rows[i][d];
        score = multiply_add(query[d], column, score);
      }
      if (head.softcap > 0) score = capped(score, head.softcap);
      for (int i = n - first; i < width; ++i) score[i] = lowest;
      store(scores + first, score);
      most = max_of(most, score);
    }
    const float before = highest;
    for (int i = 0; i < width; ++i) highest = most[i] > highest ? most[i] : highest;
    Vector weights{};
    for (int s = 0; s < n; s += width) {
      const Vector weight = exp_of(load(scores + s) - highest);
      store(scores + s, weight);
      weights += weight;
    }
    float lanes[width];
    store(lanes, weights);
    const float shrink = exp_of(all_of(before - highest))[0];
    total = multiply_add(total, shrink, sum_of(lanes));
    const Vector shrinks = all_of(shrink);
    int d = 0;
    for (; d + 2 * width <= dim; d += 2 * width) {
      Vector left{};
      Vector right{};
      for (int s = 0; s < n; ++s) {
        const float* value = values + s * dim + d;
        left = multiply_add(scores[s], load(value), left);
        right = multiply_add(scores[s], load(value + width), right);
      }
      store(sums + d, multiply_add(load(sums + d), shrinks, left));
      store(sums + d + width, multiply_add(load(sums + d + width), shrinks, right));
    }
    for (; d + width <= dim; d += width) {
      Vector sum{};
      for (int s = 0; s < n; ++s) {
        sum = multiply_add(scores[s], load(values + s * dim + d), sum);
      }
      store(sums + d, multiply_add(load(sums + d), shrinks, sum));
    }
    for (; d < dim; ++d) {
      float sum = 0;
      for (int s = 0; s < n; ++s) sum = multiply_add(scores[s], values[s * dim + d], sum);
      sums[d] = multiply_add(sums[d], shrink, sum);
    }
  }
  for (int d = 0; d < dim; ++d) output[d] = sums[d] / total;
}

void attend(const AttentionRows& rows, const AttentionHead& head) {
  for (int first = 0; first < rows.count; first += width) {
    const int count = rows.count - first < width ? rows.count - first : width;
    if (count > few) {
      attend_together(rows, first, count, head);
      continue;
    }
    for (int i = first; i < first + count; ++i) {
      attend_alone(rows.queries[i], rows.outputs[i], rows.num_keys[i], head);
    }
  }
}

}  // namespace

}  // namespace pard
