// The kernels of attention, each that this machine can run, against sums in double.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "pard/onnx/attention_kernel.h"

namespace pard {
namespace {

constexpr float no_sink = -std::numeric_limits<float>::infinity();

struct Shape {
  int num_keys = 1;
  int count = 1;
  int dim = 16;
  float softcap = 0;
  int window = 0;  // 0: none
  float sink = no_sink;
};

// Rows at the end of a text: row i sees all keys but the last count - 1 - i, or a window of them.
struct Text {
  explicit Text(const Shape& shape)
      : keys(numbers(shape.num_keys * shape.dim)),
        values(numbers(shape.num_keys * shape.dim)),
        queries(numbers(shape.count * shape.dim)),
        outputs(queries.size()),
        head{keys.data(), values.data(), shape.dim, 1 / std::sqrt(static_cast<float>(shape.dim)),
             shape.softcap},
        sink(shape.sink) {
    rows.count = shape.count;
    for (int i = 0; i < shape.count; ++i) {
      rows.queries[i] = queries.data() + i * shape.dim;
      rows.end_key[i] = shape.num_keys - shape.count + 1 + i;
      const std::int64_t hidden = shape.window > 0 ? rows.end_key[i] - shape.window : 0;
      rows.first_key[i] = std::max<std::int64_t>(0, hidden);
    }
  }

  static std::vector<float> numbers(int count) {
    static std::mt19937 generator(7);
    std::normal_distribution<float> normal(0, 1.5F);
    std::vector<float> drawn(static_cast<std::size_t>(count));
    std::generate(drawn.begin(), drawn.end(), [&] { return normal(generator); });
    return drawn;
  }

  double score(int i, std::int64_t key) const {
    double score = 0;
    for (int d = 0; d < head.head_dim; ++d) {
      score += double{rows.queries[i][d]} * head.keys[key * head.head_dim + d];
    }
    score *= head.scale;
    return head.softcap > 0 ? head.softcap * std::tanh(score / head.softcap) : score;
  }

  // What row i is to give.
  std::vector<double> expected(int i) const {
    std::vector<double> sums(static_cast<std::size_t>(head.head_dim));
    double highest = sink;
    for (std::int64_t s = rows.first_key[i]; s < rows.end_key[i]; ++s) {
      highest = std::max(highest, score(i, s));
    }
    double total = std::exp(sink - highest);
    for (std::int64_t s = rows.first_key[i]; s < rows.end_key[i]; ++s) {
      const double weight = std::exp(score(i, s) - highest);
      total += weight;
      for (int d = 0; d < head.head_dim; ++d) {
        sums[static_cast<std::size_t>(d)] += weight * head.values[s * head.head_dim + d];
      }
    }
    for (double& sum : sums) sum /= total;
    return sums;
  }

  float* output(int i) { return outputs.data() + i * head.head_dim; }

  // All rows at once.
  void attend(const AttentionKernel& kernel) {
    AttentionPart parts[AttentionRows::max_count];
    kernel.gather(rows, head, 0, rows.end_key[rows.count - 1], parts);
    for (int i = 0; i < rows.count; ++i) {
      kernel.finish(parts + i, 1, 0, head.head_dim, sink, output(i));
    }
  }

  // A row by itself, each of its chunks in a call of its own, the last chunk first.
  void attend_alone(const AttentionKernel& kernel, int i) {
    AttentionRows one;
    one.count = 1;
    one.queries[0] = rows.queries[i];
    one.first_key[0] = rows.first_key[i];
    one.end_key[0] = rows.end_key[i];
    const std::int64_t first_chunk = one.first_key[0] / attention_chunk;
    const std::int64_t end_chunk = (one.end_key[0] - 1) / attention_chunk + 1;
    std::vector<AttentionPart> parts(static_cast<std::size_t>(end_chunk - first_chunk));
    for (std::int64_t chunk = end_chunk - 1; chunk >= first_chunk; --chunk) {
      kernel.gather(one, head, chunk * attention_chunk, (chunk + 1) * attention_chunk,
                    &parts[static_cast<std::size_t>(chunk - first_chunk)]);
    }
    kernel.finish(parts.data(), end_chunk - first_chunk, 1, head.head_dim, sink, output(i));
  }

  std::vector<float> keys;
  std::vector<float> values;
  std::vector<float> queries;
  std::vector<float> outputs;
  AttentionHead head;
  float sink;
  AttentionRows rows;
};

void check_rows(Text& text) {
  for (const AttentionKernel& kernel : all_attention_kernels()) {
    std::fill(text.outputs.begin(), text.outputs.end(), std::nanf(""));
    text.attend(kernel);
    double most = 0;
    for (int i = 0; i < text.rows.count; ++i) {
      const std::vector<double> expected = text.expected(i);
      for (std::size_t d = 0; d < expected.size(); ++d) {
        const double difference = std::abs(expected[d] - double{text.output(i)[d]});
        most = std::isnan(difference) ? INFINITY : std::max(most, difference);
      }
    }
    CHECK(most < 1e-5);
  }
}

// As many keys as make a difference somewhere: blocks are of 64, chunks of attention_chunk.
const std::vector<int> numbers_of_keys = {17, 63, 64, 65, 300, 511, 512, 513, 1100};

TEST_CASE("attention: every kernel gives what the definition gives") {
  for (const int dim : {1, 8, 16, 20, 32, 64, 128, 256}) {
    for (const int num_keys : numbers_of_keys) {
      for (const int count : {1, 2, 5, 9, 16}) {
        for (const float softcap : {0.0F, 5.0F}) {
          CAPTURE(dim);
          CAPTURE(num_keys);
          CAPTURE(count);
          CAPTURE(softcap);
          Text text({num_keys, count, dim, softcap});
          check_rows(text);
        }
      }
    }
  }
}

TEST_CASE("attention: a window hides the keys before it, and a sink takes its share") {
  for (const int num_keys : numbers_of_keys) {
    for (const int window : {0, 1, 3, 64, 100, 512, 600}) {
      for (const float sink : {no_sink, 0.0F, -2.5F, 40.0F}) {
        for (const int count : {1, 2, 9, 16}) {
          CAPTURE(num_keys);
          CAPTURE(window);
          CAPTURE(sink);
          CAPTURE(count);
          Text text({num_keys, count, 20, 0, window, sink});
          check_rows(text);
        }
      }
    }
  }
}

TEST_CASE("attention: scores that are far apart leave one key, and the first key may be the only") {
  Text far({200, 3, 32});
  far.head.scale = 1e4F;
  check_rows(far);
  Text first({3, 3, 32});  // row 0 sees one key
  check_rows(first);
}

TEST_CASE("attention: what is no number is not lost, and hidden from those who do not see it") {
  constexpr float no_number[] = {std::numeric_limits<float>::quiet_NaN(),
                                 std::numeric_limits<float>::infinity()};
  for (const AttentionKernel& kernel : all_attention_kernels()) {
    for (const int count : {1, 2, 16}) {
      for (const float bad : no_number) {
        for (const std::int64_t key : {0, 45, 70, 99}) {
          for (const int window : {0, 40}) {
            CAPTURE(count);
            CAPTURE(bad);
            CAPTURE(key);
            CAPTURE(window);
            for (const bool in_values : {false, true}) {
              Text text({100, count, 32, 0, window});
              (in_values ? text.values : text.keys)[static_cast<std::size_t>(key * 32)] = bad;
              text.attend(kernel);
              for (int i = 0; i < count; ++i) {
                const float* output = text.output(i);
                const bool is_finite =
                    std::all_of(output, output + 32, [](float x) { return std::isfinite(x); });
                // A score of -inf is a key with no weight; one of +inf or NaN leaves nothing.
                const bool is_seen = text.rows.first_key[i] <= key && key < text.rows.end_key[i];
                if (in_values || std::isnan(bad)) CHECK(is_finite != is_seen);
                if (!is_seen) CHECK(is_finite);
              }
            }
          }
        }
      }
    }
    Text text({100, 2, 32});
    text.sink = std::nanf("");
    text.attend(kernel);
    CHECK(std::isnan(text.output(1)[0]));
  }
}

TEST_CASE(
    "attention: a row's bits depend neither on its company nor on how its chunks are divided") {
  for (const int dim : {8, 16, 20, 64, 96, 128}) {
    for (const int num_keys : numbers_of_keys) {
      for (const float softcap : {0.0F, 5.0F}) {
        for (const int window : {0, 7, 64, 300, 513}) {
          CAPTURE(dim);
          CAPTURE(num_keys);
          CAPTURE(window);
          Text text({num_keys, 16, dim, softcap, window, window % 2 == 0 ? no_sink : 0.5F});
          for (const AttentionKernel& kernel : all_attention_kernels()) {
            text.attend(kernel);
            const std::vector<float> together = text.outputs;
            for (int i = 0; i < text.rows.count; ++i) text.attend_alone(kernel, i);
            CHECK(std::memcmp(text.outputs.data(), together.data(),
                              together.size() * sizeof(float)) == 0);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace pard
