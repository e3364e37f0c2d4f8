// The body of attention_kernel_*.cpp, each compiled for other vector instructions. It calls nothing
// that is inline elsewhere: the linker might take such a function from here for all of the program.
//
// PARD_WIDTH: floats of a vector register, at most AttentionRows::max_count. PARD_TILE: how many
// such of sums fit into the registers, with one more to multiply with.

#include <utility>

#include "attention_kernel.h"

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define PARD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC before 12
#define PARD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Integers{__VA_ARGS__})
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between functions of this file only
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
inline Vector max_of(Vector a, Vector b) { return a > b ? a : b; }

// e^x for x <= 88, within 2 units in the last place: 2^n times a polynomial of the rest.
inline Vector exp_of(Vector x) {
  const Vector clamped = max_of(x, Vector{} - 87.0F);
  constexpr float to_integer = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector n = (clamped * 1.44269504F + to_integer) - to_integer;
  const Vector r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;  // ln 2 in two parts
  Vector y = r * 1.9875691500e-4F + 1.3981999507e-3F;
  y = y * r + 8.3334519073e-3F;
  y = y * r + 4.1665795894e-2F;
  y = y * r + 1.6666665459e-1F;
  y = y * r + 5.0000001201e-1F;
  y = y * r * r + r + 1.0F;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  const Vector result = y * reinterpret_cast<Vector>(power);
  return x < -87.0F ? Vector{} : result;
}

inline Vector capped(Vector score, float softcap) {
  const Vector doubled = score * (2.0F / softcap);
  const Vector above = doubled > 30.0F ? Vector{} + 30.0F : doubled;  // where tanh is 1
  return softcap - 2.0F * softcap / (exp_of(above) + 1.0F);
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
  Vector highest = Vector{} + lowest;
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
        for (int j = 0; j < tile; ++j) tiled[j] += query * key[j * dim + d];
      }
      for (int j = 0; j < tile; ++j) scores[s + j] = tiled[j];
    }
    for (; s < n; ++s) {
      Vector score{};
      for (int d = 0; d < dim; ++d) score += queries[d] * keys[s * dim + d];
      scores[s] = score;
    }
    if (head.softcap > 0) {
      for (s = 0; s < n; ++s) scores[s] = capped(scores[s], head.softcap);
    }
    for (s = 0; s < n && begin + n > fewest; ++s) {
      const Integers key = Integers{} + static_cast<std::int32_t>(begin + s);
      scores[s] = key < visible ? scores[s] : Vector{} + lowest;
    }
    const Vector before = highest;
    for (s = 0; s < n; ++s) highest = max_of(highest, scores[s]);
    const Vector shrink = exp_of(before - highest);
    Vector weights[width] = {};  // sums of every width-th
    for (s = 0; s < n; ++s) {
      scores[s] = exp_of(scores[s] - highest);
      weights[s % width] += scores[s];
    }
    total = total * shrink + sum_of(weights);
    int d = 0;
    for (; d + tile <= dim; d += tile) {
      Vector tiled[tile] = {};
      for (s = 0; s < n; ++s) {
        const Vector weight = scores[s];
        for (int j = 0; j < tile; ++j) tiled[j] += weight * values[s * dim + d + j];
      }
      for (int j = 0; j < tile; ++j) sums[d + j] = sums[d + j] * shrink + tiled[j];
    }
    for (; d < dim; ++d) {
      Vector sum{};
      for (s = 0; s < n; ++s) sum += scores[s] * values[s * dim + d];
      sums[d] = sums[d] * shrink + sum;
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
    Vector most = Vector{} + highest;
    for (int first = 0; first < n; first += width) {
      const float* rows[width];  // behind the last key, the last one again
      for (int i = 0; i < width; ++i) rows[i] = keys + (first + i < n ? first + i : n - 1) * dim;
      Vector score{};
      for (int d = 0; d < whole; d += width) {
        Vector columns[width];
        for (int i = 0; i < width; ++i) columns[i] = load(rows[i] + d);
        transpose<1>(columns);
        for (int i = 0; i < width; ++i) score += query[d + i] * columns[i];
      }
      for (int d = whole; d < dim; ++d) {
        Vector column;
        for (int i = 0; i < width; ++i) column[i] = rows[i][d];
        score += query[d] * column;
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
    const float shrink = exp_of(Vector{} + (before - highest))[0];
    total = total * shrink + sum_of(lanes);
    int d = 0;
    for (; d + 2 * width <= dim; d += 2 * width) {
      Vector left{};
      Vector right{};
      for (int s = 0; s < n; ++s) {
        left += scores[s] * load(values + s * dim + d);
        right += scores[s] * load(values + s * dim + d + width);
      }
      store(sums + d, load(sums + d) * shrink + left);
      store(sums + d + width, load(sums + d + width) * shrink + right);
    }
    for (; d < dim; ++d) {
      float sum = 0;
      for (int s = 0; s < n; ++s) sum += scores[s] * values[s * dim + d];
      sums[d] = sums[d] * shrink + sum;
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
