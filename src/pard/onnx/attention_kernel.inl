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

constexpr float lowest = -3.0e38F;  // the highest score before any: finite, for differences from it
constexpr float hidden = -__builtin_inff();  // a hidden key's score, whose weight is 0

static_assert(attention_chunk % block == 0);

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

inline std::int64_t lesser(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t greater(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

// Adds what a row gathered from the next chunk.
void absorb(AttentionPart& part, const AttentionPart& next, int dim) {
  const float highest = next.highest > part.highest ? next.highest : part.highest;
  const float shrink = exp_of(all_of(part.highest - highest))[0];
  const float next_shrink = exp_of(all_of(next.highest - highest))[0];
  part.highest = highest;
  part.total = multiply_add(part.total, shrink, next.total * next_shrink);
  for (int d = 0; d < dim; ++d) {
    part.sums[d] = multiply_add(part.sums[d], shrink, next.sums[d] * next_shrink);
  }
}

// Lanes are rows: a key's element meets the elements of all queries at once, and no sum runs across
// lanes, so that a row's bits do not depend on the others.
class Together {
 public:
  Together(const AttentionRows& rows, int first, int count, const AttentionHead& head)
      : head_(head), count_(count), first_key_{}, end_key_{} {
    earliest_first_ = latest_first_ = rows.first_key[first];
    earliest_end_ = latest_end_ = rows.end_key[first];
    for (int i = 0; i < count; ++i) {
      const std::int64_t first_key = rows.first_key[first + i];
      const std::int64_t end_key = rows.end_key[first + i];
      earliest_first_ = lesser(earliest_first_, first_key);
      latest_first_ = greater(latest_first_, first_key);
      earliest_end_ = lesser(earliest_end_, end_key);
      latest_end_ = greater(latest_end_, end_key);
      first_key_[i] = static_cast<std::int32_t>(first_key);
      end_key_[i] = static_cast<std::int32_t>(end_key);
    }
    for (int d = 0; d < head.head_dim; ++d) {
      Vector query{};
      for (int i = 0; i < count; ++i) query[i] = rows.queries[first + i][d] * head.scale;
      queries_[d] = query;
    }
  }

  void gather(std::int64_t chunk, AttentionPart* parts) const {
    const int dim = head_.head_dim;
    Vector sums[AttentionRows::max_head_dim];
    for (int d = 0; d < dim; ++d) sums[d] = Vector{};
    Vector highest = all_of(lowest);
    Vector total{};
    const std::int64_t end = lesser(chunk + attention_chunk, latest_end_);
    for (std::int64_t begin = greater(chunk, earliest_first_ - earliest_first_ % block);
         begin < end; begin += block) {
      add_block(begin, static_cast<int>(lesser(block, end - begin)), highest, total, sums);
    }
    int d = 0;
    for (; d + width <= dim; d += width) {
      transpose<1>(sums + d);
      for (int i = 0; i < count_; ++i) store(parts[i].sums + d, sums[d + i]);
    }
    for (int i = 0; i < count_; ++i) {
      for (int rest = d; rest < dim; ++rest) parts[i].sums[rest] = sums[rest][i];
      parts[i].highest = highest[i];
      parts[i].total = total[i];
    }
  }

 private:
  void add_block(std::int64_t begin, int n, Vector& highest, Vector& total, Vector* sums) const {
    const int dim = head_.head_dim;
    const float* keys = head_.keys + begin * dim;
    const float* values = head_.values + begin * dim;
    Vector scores[block];
    int s = 0;
    for (; s + tile <= n; s += tile) {
      const float* key = keys + s * dim;
      Vector tiled[tile] = {};
      for (int d = 0; d < dim; ++d) {
        const Vector query = queries_[d];
        for (int j = 0; j < tile; ++j) tiled[j] = multiply_add(key[j * dim + d], query, tiled[j]);
      }
      for (int j = 0; j < tile; ++j) scores[s + j] = tiled[j];
    }
    for (; s < n; ++s) {
      Vector score{};
      for (int d = 0; d < dim; ++d) score = multiply_add(keys[s * dim + d], queries_[d], score);
      scores[s] = score;
    }
    if (head_.softcap > 0) {
      for (s = 0; s < n; ++s) scores[s] = capped(scores[s], head_.softcap);
    }
    // Every row sees the keys [shown, shown_end) of the block; the others are hidden from some.
    const int shown = static_cast<int>(greater(0, lesser(n, latest_first_ - begin)));
    const int shown_end = static_cast<int>(greater(shown, lesser(n, earliest_end_ - begin)));
    const Integers from = first_key_ - static_cast<std::int32_t>(begin);
    const Integers to = end_key_ - static_cast<std::int32_t>(begin);
    for (s = 0; s < n; ++s) {
      if (s == shown) s = shown_end;
      if (s < n) scores[s] = ((from <= s) & (s < to)) ? scores[s] : all_of(hidden);
    }
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
      const auto add = [&](int first, int last) {
        for (int i = first; i < last; ++i) {
          const Vector weight = scores[i];
          const float* value = values + i * dim + d;
          for (int j = 0; j < tile; ++j) tiled[j] = multiply_add(value[j], weight, tiled[j]);
        }
      };
      const auto add_seen = [&](int first, int last) {  // a hidden value may be no number
        for (int i = first; i < last; ++i) {
          const Vector weight = scores[i];
          const Integers seen = (from <= i) & (i < to);
          const float* value = values + i * dim + d;
          for (int j = 0; j < tile; ++j) {
            tiled[j] = multiply_add(seen ? all_of(value[j]) : Vector{}, weight, tiled[j]);
          }
        }
      };
      add_seen(0, shown);
      add(shown, shown_end);
      add_seen(shown_end, n);
      for (int j = 0; j < tile; ++j) sums[d + j] = multiply_add(sums[d + j], shrink, tiled[j]);
    }
    for (; d < dim; ++d) {
      Vector sum{};
      for (s = 0; s < n; ++s) {
        const Integers seen = (from <= s) & (s < to);
        sum = multiply_add(seen ? all_of(values[s * dim + d]) : Vector{}, scores[s], sum);
      }
      sums[d] = multiply_add(sums[d], shrink, sum);
    }
  }

  const AttentionHead& head_;
  int count_;
  Integers first_key_;
  Integers end_key_;
  std::int64_t earliest_first_;
  std::int64_t latest_first_;
  std::int64_t earliest_end_;
  std::int64_t latest_end_;
  Vector queries_[AttentionRows::max_head_dim];  // [head_dim, row]
};

// Lanes are keys, and then the elements of values: for rows too few to fill a Vector. Every sum has
// the order it has above, so that the bits are the same.
class Alone {
 public:
  Alone(const AttentionRows& rows, int row, const AttentionHead& head)
      : head_(head), first_key_(rows.first_key[row]), end_key_(rows.end_key[row]) {
    for (int d = 0; d < head.head_dim; ++d) query_[d] = rows.queries[row][d] * head.scale;
  }

  void gather(std::int64_t chunk, AttentionPart* part) const {
    part->highest = lowest;
    part->total = 0;
    for (int d = 0; d < head_.head_dim; ++d) part->sums[d] = 0;
    const std::int64_t end = lesser(chunk + attention_chunk, end_key_);
    for (std::int64_t begin = greater(chunk, first_key_ - first_key_ % block); begin < end;
         begin += block) {
      add_block(begin, static_cast<int>(greater(0, first_key_ - begin)),
                static_cast<int>(lesser(block, end - begin)), *part);
    }
  }

 private:
  // Of the block's keys, the row sees [from, to).
  void add_block(std::int64_t begin, int from, int to, AttentionPart& part) const {
    const int dim = head_.head_dim;
    const int whole = dim - dim % width;  // the rest goes one by one
    const float* keys = head_.keys + begin * dim;
    const float* values = head_.values + begin * dim;
    alignas(64) float scores[block];
    Vector most = all_of(part.highest);
    const int first_lanes = from - from % width;
    for (int first = first_lanes; first < to; first += width) {
      const float* rows[width];  // behind the last key, the last one again
      for (int i = 0; i < width; ++i) rows[i] = keys + (first + i < to ? first + i : to - 1) * dim;
      Vector score{};
      for (int d = 0; d < whole; d += width) {
        Vector columns[width];
        for (int i = 0; i < width; ++i) columns[i] = load(rows[i] + d);
        transpose<1>(columns);
        for (int i = 0; i < width; ++i) score = multiply_add(query_[d + i], columns[i], score);
      }
      for (int d = whole; d < dim; ++d) {
        Vector column;
        for (int i = 0; i < width; ++i) column[i] = rows[i][d];
        score = multiply_add(query_[d], column, score);
      }
      if (head_.softcap > 0) score = capped(score, head_.softcap);
      for (int i = 0; i < from - first; ++i) score[i] = hidden;
      for (int i = to - first; i < width; ++i) score[i] = hidden;
      store(scores + first, score);
      most = max_of(most, score);
    }
    const float before = part.highest;
    for (int i = 0; i < width; ++i) part.highest = most[i] > part.highest ? most[i] : part.highest;
    Vector weights{};
    for (int s = first_lanes; s < to; s += width) {
      const Vector weight = exp_of(load(scores + s) - part.highest);
      store(scores + s, weight);
      weights += weight;
    }
    float lanes[width];
    store(lanes, weights);
    const float shrink = exp_of(all_of(before - part.highest))[0];
    part.total = multiply_add(part.total, shrink, sum_of(lanes));
    const Vector shrinks = all_of(shrink);
    float* sums = part.sums;
    int d = 0;
    for (; d + 2 * width <= dim; d += 2 * width) {
      Vector left{};
      Vector right{};
      for (int s = from; s < to; ++s) {
        const float* value = values + s * dim + d;
        left = multiply_add(scores[s], load(value), left);
        right = multiply_add(scores[s], load(value + width), right);
      }
      store(sums + d, multiply_add(load(sums + d), shrinks, left));
      store(sums + d + width, multiply_add(load(sums + d + width), shrinks, right));
    }
    for (; d + width <= dim; d += width) {
      Vector sum{};
      for (int s = from; s < to; ++s) {
        sum = multiply_add(scores[s], load(values + s * dim + d), sum);
      }
      store(sums + d, multiply_add(load(sums + d), shrinks, sum));
    }
    for (; d < dim; ++d) {
      float sum = 0;
      for (int s = from; s < to; ++s) sum = multiply_add(scores[s], values[s * dim + d], sum);
      sums[d] = multiply_add(sums[d], shrink, sum);
    }
  }

  const AttentionHead& head_;
  std::int64_t first_key_;
  std::int64_t end_key_;
  alignas(64) float query_[AttentionRows::max_head_dim];
};

template <class Rows>
void gather_chunks(const Rows& rows, int count, int dim, std::int64_t begin, std::int64_t end,
                   AttentionPart* parts) {
  rows.gather(begin, parts);
  for (std::int64_t chunk = begin + attention_chunk; chunk < end; chunk += attention_chunk) {
    AttentionPart next[width];
    rows.gather(chunk, next);
    for (int i = 0; i < count; ++i) absorb(parts[i], next[i], dim);
  }
}

void gather(const AttentionRows& rows, const AttentionHead& head, std::int64_t begin,
            std::int64_t end, AttentionPart* parts) {
  const int dim = head.head_dim;
  for (int first = 0; first < rows.count; first += width) {
    const int count = static_cast<int>(lesser(width, rows.count - first));
    if (count > few) {
      const Together together(rows, first, count, head);
      gather_chunks(together, count, dim, begin, end, parts + first);
      continue;
    }
    for (int i = first; i < first + count; ++i) {
      gather_chunks(Alone(rows, i, head), 1, dim, begin, end, parts + i);
    }
  }
}

void finish(AttentionPart* parts, std::int64_t count, std::int64_t stride, int head_dim, float sink,
            float* output) {
  for (std::int64_t i = 1; i < count; ++i) absorb(*parts, parts[i * stride], head_dim);
  const float highest = sink > parts->highest ? sink : parts->highest;
  const float shrink = exp_of(all_of(parts->highest - highest))[0];
  const float total = multiply_add(parts->total, shrink, exp_of(all_of(sink - highest))[0]);
  for (int d = 0; d < head_dim; ++d) {
    // Not -0, which a row may lose where it goes through blocks that are hidden from it.
    output[d] = parts->sums[d] * shrink / total + 0.0F;
  }
}

}  // namespace

}  // namespace pard
