// The body of attention_kernel_*.cpp, each compiled for other vector instructions. It calls nothing
// that is inline elsewhere: the linker might take such a function from here for all of the program.
//
// PARD_WIDTH: floats of a vector register, at most AttentionRows::max_count. PARD_TILE: how many
// such of sums fit into the registers, with one more to multiply with.

#include "attention_kernel.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between functions of this file only
#endif

namespace pard {

namespace {

constexpr int width = PARD_WIDTH;
constexpr int block = 64;  // keys whose scores are kept at a time
constexpr int tile = PARD_TILE;

using Vector = float __attribute__((vector_size(4 * width)));
using Integers = std::int32_t __attribute__((vector_size(4 * width)));
using Unaligned = float __attribute__((vector_size(4 * width), aligned(4), may_alias));

constexpr float lowest = -3.0e38F;  // the score of a hidden key: finite, so that none makes a NaN

inline Vector load(const float* data) { return *reinterpret_cast<const Unaligned*>(data); }
inline void store(float* data, Vector value) { *reinterpret_cast<Unaligned*>(data) = value; }
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

// The sum of n floats, by halves.
template <int n>
inline float sum_of(const float* data) {
  typedef float Half __attribute__((vector_size(2 * n)));  // GCC drops it from an alias
  Half low;
  Half high;
  __builtin_memcpy(&low, data, sizeof(Half));
  __builtin_memcpy(&high, data + n / 2, sizeof(Half));
  float halves[n / 2];
  low += high;
  __builtin_memcpy(halves, &low, sizeof(Half));
  return sum_of<n / 2>(halves);
}
template <>
inline float sum_of<1>(const float* data) {
  return *data;
}
inline float sum_of(const Vector& v) {
  float all[width];
  __builtin_memcpy(all, &v, sizeof(Vector));
  return sum_of<width>(all);
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
    total *= shrink;
    for (s = 0; s < n; ++s) {
      scores[s] = exp_of(scores[s] - highest);
      total += scores[s];
    }
    int d = 0;
    for (; d + tile <= dim; d += tile) {
      Vector tiled[tile];
      for (int j = 0; j < tile; ++j) tiled[j] = sums[d + j] * shrink;
      for (s = 0; s < n; ++s) {
        const Vector weight = scores[s];
        for (int j = 0; j < tile; ++j) tiled[j] += weight * values[s * dim + d + j];
      }
      for (int j = 0; j < tile; ++j) sums[d + j] = tiled[j];
    }
    for (; d < dim; ++d) {
      Vector sum = sums[d] * shrink;
      for (s = 0; s < n; ++s) sum += scores[s] * values[s * dim + d];
      sums[d] = sum;
    }
  }
  for (int d = 0; d < dim; ++d) {
    const Vector output = sums[d] / total;
    for (int i = 0; i < count; ++i) rows.outputs[first + i][d] = output[i];
  }
}

// Lanes are the elements of the one row there is. It is summed in another order.
void attend_alone(const AttentionRows& rows, const AttentionHead& head) {
  const std::int64_t num_keys = rows.num_keys[0];
  const int dim = head.head_dim;
  const int whole = dim - dim % width;  // the rest goes one by one
  alignas(64) float query[AttentionRows::max_head_dim];
  alignas(64) float sums[AttentionRows::max_head_dim];
  for (int d = 0; d < dim; ++d) {
    query[d] = rows.queries[0][d] * head.scale;
    sums[d] = 0;
  }
  alignas(64) float scores[block] = {};
  float highest = lowest;
  float total = 0;
  for (std::int64_t begin = 0; begin < num_keys; begin += block) {
    const int n = static_cast<int>(num_keys - begin < block ? num_keys - begin : block);
    const float* keys = head.keys + begin * dim;
    const float* values = head.values + begin * dim;
    for (int s = 0; s < n; ++s) {
      const float* key = keys + s * dim;
      Vector products{};
      for (int d = 0; d < whole; d += width) products += load(query + d) * load(key + d);
      float score = sum_of(products);
      for (int d = whole; d < dim; ++d) score += query[d] * key[d];
      scores[s] = score;
    }
    if (head.softcap > 0) {
      for (int s = 0; s < n; s += width) store(scores + s, capped(load(scores + s), head.softcap));
    }
    for (int s = n; s < block; ++s) scores[s] = lowest;
    Vector blocks_highest = Vector{} + highest;
    for (int s = 0; s < n; s += width) {
      blocks_highest = max_of(blocks_highest, load(scores + s));
    }
    const float before = highest;
    for (int i = 0; i < width; ++i) {
      highest = blocks_highest[i] > highest ? blocks_highest[i] : highest;
    }
    Vector totals{};
    for (int s = 0; s < n; s += width) {
      const Vector weights = exp_of(load(scores + s) - highest);
      store(scores + s, weights);
      totals += weights;
    }
    const float shrink = exp_of(Vector{} + (before - highest))[0];
    total = total * shrink + sum_of(totals);
    int d = 0;
    for (; d + 2 * width <= dim; d += 2 * width) {
      Vector left = load(sums + d) * shrink;
      Vector right = load(sums + d + width) * shrink;
      for (int s = 0; s < n; ++s) {
        left += scores[s] * load(values + s * dim + d);
        right += scores[s] * load(values + s * dim + d + width);
      }
      store(sums + d, left);
      store(sums + d + width, right);
    }
    for (; d < dim; ++d) {
      float sum = sums[d] * shrink;
      for (int s = 0; s < n; ++s) sum += scores[s] * values[s * dim + d];
      sums[d] = sum;
    }
  }
  for (int d = 0; d < dim; ++d) rows.outputs[0][d] = sums[d] / total;
}

void attend(const AttentionRows& rows, const AttentionHead& head) {
  if (rows.is_alone) {
    attend_alone(rows, head);
    return;
  }
  for (int first = 0; first < rows.count; first += width) {
    const int count = rows.count - first < width ? rows.count - first : width;
    attend_together(rows, first, count, head);
  }
}

}  // namespace

}  // namespace pard
