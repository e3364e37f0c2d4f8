// Products by integer weights: each kernel that this machine can run, against sums in double and
// against the portable one, and what packing accepts.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "pard/onnx/matmul_kernel.h"
#include "pard/onnx/packed_weights.h"

namespace pard {
namespace {

enum class Kind { symmetric, zero_points, minima };

// Weights drawn at random, and what they are worth.
struct Weights {
  Weights(int columns, int depth, int bits, int block, Kind kind,
          ScaleType type = ScaleType::float32) {
    packed.num_columns = columns;
    packed.depth = depth;
    packed.bits = bits;
    packed.block = block;
    const auto blocks = static_cast<std::size_t>(packed.num_blocks());
    const auto count = static_cast<std::size_t>(columns) * blocks;
    integers.resize(count * static_cast<std::size_t>(block * bits / 8));
    for (std::byte& each : integers) each = static_cast<std::byte>(random());
    packed.integers = integers;
    scales = draw_scales(type, 0.1F, small_scales, scale_factors);
    if (type == ScaleType::float16) scales.front() = 0x1p-24F;  // the smallest that there is
    packed.scales = std::as_bytes(std::span(scales));
    if (kind == Kind::minima) {
      minima = draw_scales(type, 0.5F, small_minima, minimum_factors);
      packed.minima = std::as_bytes(std::span(minima));
    }
    if (type == ScaleType::factored) {
      packed.scale_type = type;
      packed.scales = std::as_bytes(std::span(small_scales));
      packed.minima = std::as_bytes(std::span(small_minima));
      packed.scale_factors = std::as_bytes(std::span(scale_factors));
      packed.minimum_factors = std::as_bytes(std::span(minimum_factors));
    }
    if (kind == Kind::zero_points) {
      const std::size_t bytes = bits == 8 ? blocks : (blocks + 1) / 2;
      zero_points.resize(static_cast<std::size_t>(columns) * bytes);
      for (std::byte& each : zero_points) each = static_cast<std::byte>(random());
      packed.zero_points = zero_points;
    }
  }

  // Numbers of every block up to `most` that a type has; where it is factored, what they are of
  // too.
  std::vector<float> draw_scales(ScaleType type, float most, std::vector<std::int8_t>& small,
                                 std::vector<std::uint16_t>& factors) const {
    const auto blocks = static_cast<std::size_t>(packed.num_blocks());
    const auto spans = static_cast<std::size_t>(packed.num_spans());
    const auto columns = static_cast<std::size_t>(packed.num_columns);
    std::vector<float> drawn(columns * blocks);
    for (float& each : drawn) each = between(-most, most);
    if (type == ScaleType::float16) {
      for (float& each : drawn) each = std::round(each * 0x1p12F) * 0x1p-12F;
    } else if (type == ScaleType::factored) {
      small.resize(drawn.size());
      factors.resize(columns * spans);
      for (std::int8_t& each : small) each = static_cast<std::int8_t>(random());
      // 1.xxx times 2 to the -10: the mantissa drawn.
      for (std::uint16_t& each : factors) {
        each = static_cast<std::uint16_t>((random() & 0x83FF) | 0x1400);
      }
      for (std::size_t i = 0; i < drawn.size(); ++i) {
        const std::size_t span = i % blocks * static_cast<std::size_t>(packed.block) / factor_span;
        const std::uint16_t factor = factors[i / blocks * spans + span];
        const float magnitude = (1 + static_cast<float>(factor & 0x3FF) / 1024) * 0x1p-10F;
        drawn[i] = static_cast<float>(small[i]) * (factor & 0x8000 ? -magnitude : magnitude);
      }
    }
    return drawn;
  }

  double at(int column, int k) const {
    const auto blocks = static_cast<std::size_t>(packed.num_blocks());
    const auto block = static_cast<std::size_t>(k / packed.block);
    const std::size_t index = static_cast<std::size_t>(column) * blocks + block;
    const auto nibble = [](std::byte both, std::size_t i) {
      return std::to_integer<int>(i % 2 == 0 ? both & std::byte{15} : both >> 4);
    };
    const auto within = static_cast<std::size_t>(k % packed.block);
    const std::size_t first = index * static_cast<std::size_t>(packed.block * packed.bits / 8);
    const int q = packed.bits == 8 ? std::to_integer<int>(integers[first + within])
                                   : nibble(integers[first + within / 2], within);
    if (!minima.empty()) return double{scales[index]} * q + minima[index];
    int zero = packed.bits == 8 ? 128 : 8;
    if (!zero_points.empty()) {
      zero =
          packed.bits == 8
              ? std::to_integer<int>(zero_points[index])
              : nibble(
                    zero_points[static_cast<std::size_t>(column) * ((blocks + 1) / 2) + block / 2],
                    block);
    }
    return double{scales[index]} * (q - zero);
  }

  static std::uint32_t random() {
    static std::mt19937 generator(11);
    return static_cast<std::uint32_t>(generator());
  }
  static float between(float low, float high) {
    return low + (high - low) * static_cast<float>(random() >> 8) * 0x1p-24F;
  }

  BlockWeights packed;
  std::vector<std::byte> integers;
  std::vector<std::byte> zero_points;
  std::vector<float> scales;  // of every block, whatever their type
  std::vector<float> minima;
  std::vector<std::int8_t> small_scales;
  std::vector<std::int8_t> small_minima;
  std::vector<std::uint16_t> scale_factors;
  std::vector<std::uint16_t> minimum_factors;
};

std::vector<float> draw_rows(int rows, int depth) {
  std::vector<float> drawn(static_cast<std::size_t>(rows * depth));
  for (float& each : drawn) each = Weights::between(-2, 2);
  return drawn;
}

// The product, `at_a_time` rows in a panel.
std::vector<float> product(const MatmulKernel& kernel, const PackedMatrix& matrix,
                           const std::vector<float>& rows, int at_a_time,
                           const float* bias = nullptr) {
  const auto depth = static_cast<std::size_t>(matrix.depth);
  const auto columns = static_cast<std::size_t>(matrix.num_columns);
  const std::size_t count = rows.size() / depth;
  std::vector<float> out(count * columns, std::nanf(""));
  for (std::size_t first = 0; first < count; first += static_cast<std::size_t>(at_a_time)) {
    const int some = std::min(at_a_time, static_cast<int>(count - first));
    std::vector<std::byte> panel(static_cast<std::size_t>(some) * matrix.row_bytes());
    kernel.round_rows(matrix, rows.data() + first * depth, matrix.depth, some, panel.data());
    for (std::int64_t tile = 0; tile < matrix.num_tiles(); ++tile) {
      kernel.multiply(matrix, tile, panel.data(), some, bias, out.data() + first * columns,
                      matrix.num_columns);
    }
  }
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

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
