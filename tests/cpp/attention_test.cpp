// The kernels of attention, each that this machine can run, against sums in double.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "pard/onnx/attention_kernel.h"

namespace pard {
namespace {

// Rows at the end of a text: row i sees all keys but the last count - 1 - i.
struct Text {
  Text(int num_keys, int count, int dim, float softcap)
      : keys(numbers(num_keys * dim)),
        values(numbers(num_keys * dim)),
        queries(numbers(count * dim)),
        outputs(queries.size()),
        head{keys.data(), values.data(), dim, 1 / std::sqrt(static_cast<float>(dim)), softcap} {
    rows.count = count;
    for (int i = 0; i < count; ++i) {
      rows.queries[i] = queries.data() + i * dim;
      rows.outputs[i] = outputs.data() + i * dim;
      rows.num_keys[i] = num_keys - count + 1 + i;
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
    double highest = score(i, 0);
    for (std::int64_t s = 0; s < rows.num_keys[i]; ++s) highest = std::max(highest, score(i, s));
    double total = 0;
    for (std::int64_t s = 0; s < rows.num_keys[i]; ++s) {
      const double weight = std::exp(score(i, s) - highest);
      total += weight;
      for (int d = 0; d < head.head_dim; ++d) {
        sums[static_cast<std::size_t>(d)] += weight * head.values[s * head.head_dim + d];
      }
    }
    for (double& sum : sums) sum /= total;
    return sums;
  }

  std::vector<float> keys;
  std::vector<float> values;
  std::vector<float> queries;
  std::vector<float> outputs;
  AttentionHead head;
  AttentionRows rows;
};

void check_rows(Text& text) {
  for (const AttendRows attend : all_attend_rows()) {
    std::fill(text.outputs.begin(), text.outputs.end(), std::nanf(""));
    attend(text.rows, text.head);
    double most = 0;
    for (int i = 0; i < text.rows.count; ++i) {
      const std::vector<double> expected = text.expected(i);
      for (std::size_t d = 0; d < expected.size(); ++d) {
        const double difference = std::abs(expected[d] - double{text.rows.outputs[i][d]});
        most = std::isnan(difference) ? INFINITY : std::max(most, difference);
      }
    }
    CHECK(most < 1e-5);
  }
}

TEST_CASE("attention: every kernel gives what the definition gives") {
  for (const int dim : {1, 8, 16, 20, 32, 64, 128, 256}) {
    for (const int num_keys : {16, 63, 64, 65, 300}) {
      for (const int count : {1, 2, 5, 9, 16}) {
        for (const float softcap : {0.0F, 5.0F}) {
          CAPTURE(dim);
          CAPTURE(num_keys);
          CAPTURE(count);
          CAPTURE(softcap);
          Text text(num_keys, count, dim, softcap);
          check_rows(text);
        }
      }
    }
  }
}

TEST_CASE("attention: scores that are far apart leave one key, and the first key may be the only") {
  Text far(200, 3, 32, 0);
  far.head.scale = 1e4F;
  check_rows(far);
  Text first(3, 3, 32, 0);  // row 0 sees one key
  check_rows(first);
}

TEST_CASE("attention: what is no number is not lost, and hidden from those who do not see it") {
  constexpr float no_number[] = {std::numeric_limits<float>::quiet_NaN(),
                                 std::numeric_limits<float>::infinity()};
  for (const AttendRows attend : all_attend_rows()) {
    for (const int count : {1, 2, 16}) {
      for (const float bad : no_number) {
        for (const std::int64_t key : {0, 70, 99}) {
          CAPTURE(count);
          CAPTURE(bad);
          CAPTURE(key);
          for (const bool in_values : {false, true}) {
            Text text(100, count, 32, 0);
            (in_values ? text.values : text.keys)[static_cast<std::size_t>(key * 32)] = bad;
            attend(text.rows, text.head);
            for (int i = 0; i < count; ++i) {
              const float* output = text.rows.outputs[i];
              const bool is_finite =
                  std::all_of(output, output + 32, [](float x) { return std::isfinite(x); });
              // A score of -inf is a key with no weight; one of +inf or NaN leaves nothing.
              const bool is_seen = key < text.rows.num_keys[i];
              if (in_values || std::isnan(bad)) CHECK(is_finite != is_seen);
              if (!is_seen) CHECK(is_finite);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("attention: a row's bits do not depend on its company") {
  for (const int dim : {8, 16, 20, 32, 64, 96, 128}) {
    for (const int num_keys : {17, 63, 64, 65, 122, 150}) {
      for (const float softcap : {0.0F, 5.0F}) {
        CAPTURE(dim);
        CAPTURE(num_keys);
        Text together(num_keys, 16, dim, softcap);
        for (const AttendRows attend : all_attend_rows()) {
          attend(together.rows, together.head);
          const std::vector<float> expected = together.outputs;
          for (int i = 0; i < together.rows.count; ++i) {
            AttentionRows one;
            one.count = 1;
            one.queries[0] = together.rows.queries[i];
            one.outputs[0] = together.rows.outputs[i];
            one.num_keys[0] = together.rows.num_keys[i];
            attend(one, together.head);
          }
          CHECK(together.outputs == expected);
        }
      }
    }
  }
}

}  // namespace
}  // namespace pard
