// Products by integer weights: each kernel that this machine can run, against sums in double and
// against the portable one, and what packing accepts.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "pard/onnx/matmul_kernel.h"
#include "pard/onnx/packed_weights.h"
#include "random_weights.h"

namespace pard {
namespace {

using test::draw_rows;
using test::Kind;
using test::product;
using test::same_bits;
using test::Weights;

bool rows_are_alike(const MatmulKernel& kernel, const PackedMatrix& matrix,
                    const std::vector<float>& rows) {
  const std::vector<float> alone = product(kernel, matrix, rows, 1);
  for (int at_a_time = 2; at_a_time <= kernel.most_rows; ++at_a_time) {
    if (!same_bits(alone, product(kernel, matrix, rows, at_a_time))) return false;
  }
  return true;
}

// Rounding a group moves a number by half a step at most; sums in float32 add little.
double bound(const Weights& weights, const float* row, int column) {
  const int group = std::min(weights.packed.block, 32);
  const auto depth = static_cast<int>(weights.packed.depth);
  double total = 0;
  for (int first = 0; first < depth; first += group) {
    double largest = 0;
    double sum = 0;
    for (int k = first; k < std::min(first + group, depth); ++k) {
      largest = std::max(largest, std::abs(double{row[k]}));
      sum += std::abs(weights.at(column, k));
    }
    total += largest * sum * (0.5 / 127 + 1e-5);
  }
  return total;
}

double worst_of(const Weights& weights, const std::vector<float>& rows,
                const std::vector<float>& actual) {
  const auto depth = static_cast<std::size_t>(weights.packed.depth);
  const auto columns = static_cast<std::size_t>(weights.packed.num_columns);
  double worst = 0;
  for (std::size_t r = 0; r < rows.size() / depth; ++r) {
    const float* row = rows.data() + r * depth;
    for (std::size_t c = 0; c < columns; ++c) {
      double expected = 0;
      for (std::size_t k = 0; k < depth; ++k) {
        expected += row[k] * weights.at(static_cast<int>(c), static_cast<int>(k));
      }
      const double difference = std::abs(expected - double{actual[r * columns + c]});
      worst = std::max(worst, difference / bound(weights, row, static_cast<int>(c)));
    }
  }
  return worst;
}

TEST_CASE("products: the same bits in any company and with any instructions, within the bound") {
  constexpr int num_rows = 33;
  for (const int bits : {4, 8}) {
    for (const int block : {16, 32, 64, 128}) {
      for (const Kind kind : {Kind::symmetric, Kind::zero_points, Kind::minima}) {
        for (const ScaleType type : {ScaleType::float32, ScaleType::float16, ScaleType::factored}) {
          const int columns = 1 + static_cast<int>(Weights::random() % 70);
          const int depth = 1 + static_cast<int>(Weights::random() % 600);
          CAPTURE(bits);
          CAPTURE(block);
          CAPTURE(columns);
          CAPTURE(depth);
          const Weights weights(columns, depth, bits, block, kind, type);
          const std::vector<float> rows = draw_rows(num_rows, depth);
          std::vector<float> portable;
          for (const MatmulKernel& kernel : all_matmul_kernels()) {
            CAPTURE(kernel.name);
            const PackedWeights packed(weights.packed, kernel, 2);
            CHECK(packed.matrix().scales == type);
            CHECK(rows_are_alike(kernel, packed.matrix(), rows));
            const std::vector<float> actual =
                product(kernel, packed.matrix(), rows, kernel.most_rows);
            if (portable.empty()) {
              portable = actual;
              CHECK(worst_of(weights, rows, actual) < 1);
            }
            CHECK(same_bits(portable, actual));
          }
        }
      }
    }
  }
}

TEST_CASE("blocks: a column that is read is what its weights are worth") {
  for (const int bits : {4, 8}) {
    for (const int block : {16, 128}) {
      for (const Kind kind : {Kind::symmetric, Kind::zero_points, Kind::minima}) {
        for (const ScaleType type : {ScaleType::float32, ScaleType::factored}) {
          const Weights weights(9, 300, bits, block, kind, type);
          std::vector<float> read(300);
          for (int column = 0; column < 9; ++column) {
            weights.packed.read_column(column, read.data());
            for (int k = 0; k < 300; ++k) {
              CHECK(double{read[static_cast<std::size_t>(k)]} ==
                    doctest::Approx(weights.at(column, k)).epsilon(1e-6));
            }
          }
        }
      }
    }
  }
}

// A kernel that rounds the last row of several otherwise.
void multiply_otherwise(const PackedMatrix& weights, std::int64_t tile, const std::byte* panel,
                        int count, const float* bias, float* out, std::int64_t stride) {
  all_matmul_kernels().front().multiply(weights, tile, panel, count, bias, out, stride);
  if (count < 2) return;
  float& last = out[(count - 1) * stride];
  last = std::nextafter(last, 2 * last);
}

TEST_CASE("products: a kernel whose last row rounds otherwise is found out") {
  MatmulKernel planted = all_matmul_kernels().front();
  planted.multiply = multiply_otherwise;
  const Weights weights(40, 96, 4, 32, Kind::symmetric);
  const PackedWeights packed(weights.packed, planted, 1);
  CHECK_FALSE(rows_are_alike(planted, packed.matrix(), draw_rows(7, 96)));
}

TEST_CASE("products: an addend for every column comes first") {
  const Weights weights(21, 64, 8, 32, Kind::symmetric);
  std::vector<float> bias = draw_rows(1, 21);
  const std::vector<float> rows = draw_rows(3, 64);
  for (const MatmulKernel& kernel : all_matmul_kernels()) {
    const PackedWeights packed(weights.packed, kernel, 1);
    const std::vector<float> without = product(kernel, packed.matrix(), rows, 3);
    const std::vector<float> with = product(kernel, packed.matrix(), rows, 3, bias.data());
    for (std::size_t i = 0; i < with.size(); ++i) {
      CHECK(with[i] == doctest::Approx(without[i] + bias[i % 21]).epsilon(1e-5));
    }
  }
}

TEST_CASE("products: what is no number is not lost, and stays in its row") {
  const Weights weights(20, 70, 4, 32, Kind::zero_points);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> rows = draw_rows(3, 70);
    rows[70 + 69] = bad;
    for (const MatmulKernel& kernel : all_matmul_kernels()) {
      const PackedWeights packed(weights.packed, kernel, 1);
      const std::vector<float> out = product(kernel, packed.matrix(), rows, 3);
      for (std::size_t i = 0; i < out.size(); ++i) {
        CHECK(std::isnan(out[i]) == (i / 20 == 1));
      }
    }
  }
}

TEST_CASE("products: rows of zeros, and numbers next to zero, come out as zeros") {
  const Weights weights(20, 64, 4, 32, Kind::minima);
  std::vector<float> rows(2 * 64, 0.0F);
  std::fill(rows.begin() + 64, rows.end(), -std::numeric_limits<float>::denorm_min());
  for (const MatmulKernel& kernel : all_matmul_kernels()) {
    const PackedWeights packed(weights.packed, kernel, 1);
    for (const float each : product(kernel, packed.matrix(), rows, 2)) CHECK(each == 0.0F);
  }
}

TEST_CASE("products: large numbers stay within the bound") {
  const Weights weights(16, 64, 8, 64, Kind::symmetric);
  std::vector<float> rows = draw_rows(2, 64);
  for (float& each : rows) each *= 1e34F;
  for (const MatmulKernel& kernel : all_matmul_kernels()) {
    const PackedWeights packed(weights.packed, kernel, 1);
    CHECK(worst_of(weights, rows, product(kernel, packed.matrix(), rows, 2)) < 1);
  }
}

TEST_CASE("products: any number of threads packs the same, for who comes later too") {
  Weights weights(4000, 1100, 4, 32, Kind::zero_points);  // worth several threads
  const MatmulKernel& kernel = matmul_kernel();
  const auto first = PackedWeights::make(weights.packed, kernel, 1);
  const PackedWeights other(weights.packed, kernel, 4);
  const std::size_t bytes = first->matrix().bytes();
  REQUIRE(other.matrix().bytes() == bytes);
  CHECK(std::memcmp(first->matrix().blocks, other.matrix().blocks, bytes) == 0);

  CHECK(PackedWeights::make(weights.packed, kernel, 4) == first);
  weights.integers.back() ^= std::byte{1};
  CHECK(PackedWeights::make(weights.packed, kernel, 4) != first);
  weights.integers.back() ^= std::byte{1};
  weights.zero_points.front() ^= std::byte{1};
  CHECK(PackedWeights::make(weights.packed, kernel, 4) != first);
  weights.zero_points.front() ^= std::byte{1};
  weights.scales.back() *= 2;
  CHECK(PackedWeights::make(weights.packed, kernel, 4) != first);
}

TEST_CASE("products: scales and minima must be finite") {
  const MatmulKernel& kernel = matmul_kernel();
  Weights weights(5, 64, 4, 32, Kind::minima);
  weights.scales[7] = std::nanf("");
  CHECK_THROWS_AS(PackedWeights(weights.packed, kernel, 1), std::invalid_argument);
  weights.scales[7] = 1;
  weights.minima[9] = INFINITY;
  CHECK_THROWS_AS(PackedWeights(weights.packed, kernel, 1), std::invalid_argument);
  weights.minima[9] = 0;
  std::vector<std::uint16_t> halves(10, 0x3C00);
  weights.packed.scales = std::as_bytes(std::span(halves));
  weights.packed.scale_type = ScaleType::float16;
  weights.packed.minima = {};
  const PackedWeights packed(weights.packed, kernel, 1);
  CHECK(packed.matrix().scales == ScaleType::float16);
  halves[3] = 0x7C00;
  CHECK_THROWS_AS(PackedWeights(weights.packed, kernel, 1), std::invalid_argument);

  Weights factored(5, 300, 4, 32, Kind::minima, ScaleType::factored);
  CHECK_NOTHROW(PackedWeights(factored.packed, kernel, 1));
  factored.minimum_factors.back() = 0x7E00;
  CHECK_THROWS_AS(PackedWeights(factored.packed, kernel, 1), std::invalid_argument);
}

}  // namespace
}  // namespace pard
