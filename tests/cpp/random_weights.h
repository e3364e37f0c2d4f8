// Weights for matmul_test.cpp and its fuzzer, and products by them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "pard/onnx/matmul_kernel.h"
#include "pard/onnx/packed_weights.h"

namespace pard::test {

enum class Kind : std::uint8_t { symmetric, zero_points, minima };

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

  static std::mt19937& generator() {
    static std::mt19937 generator(11);
    return generator;
  }
  static std::uint32_t random() { return static_cast<std::uint32_t>(generator()()); }
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

inline std::vector<float> draw_rows(int rows, int depth) {
  std::vector<float> drawn(static_cast<std::size_t>(rows * depth));
  for (float& each : drawn) each = Weights::between(-2, 2);
  return drawn;
}

// The product, `at_a_time` rows in a panel.
inline std::vector<float> product(const MatmulKernel& kernel, const PackedMatrix& matrix,
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

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace pard::test
