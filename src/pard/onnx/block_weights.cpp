#include "block_weights.h"

#include <atomic>
#include <bit>
#include <cmath>
#include <stdexcept>

namespace pard {

namespace {

// Between finite float16 and float32. Nothing on the way is subnormal in float32: a caller may have
// such numbers flushed to zero.
constexpr std::uint32_t exponent_apart = 127 - 15;
constexpr std::uint32_t first_normal_half = 0x0400;

// Whether a test holds for all numbers of a type, tried on up to `threads` threads.
template <class T, class Test>
bool all_of(std::span<const std::byte> numbers, int threads, const Test& test) {
  std::atomic<bool> holds = true;
  in_parts(static_cast<std::int64_t>(numbers.size() / sizeof(T)), numbers.size(), threads,
           [&](std::int64_t begin, std::int64_t end) {
             for (std::int64_t i = begin; i < end && holds; ++i) {
               if (!test(read<T>(numbers, static_cast<std::size_t>(i)))) holds = false;
             }
           });
  return holds;
}

float number_at(std::span<const std::byte> numbers, ScaleType type, std::size_t index) {
  if (type == ScaleType::float32) return read<float>(numbers, index);
  if (type == ScaleType::float16) return from_half(read<std::uint16_t>(numbers, index));
  return static_cast<float>(read<std::int8_t>(numbers, index));
}

int nibble(std::byte both, bool upper) {
  return std::to_integer<int>(upper ? both >> 4 : both & std::byte{0x0F});
}

}  // namespace

float from_half(std::uint16_t half) {
  const std::uint32_t magnitude = half & 0x7FFFU;
  const float value = magnitude < first_normal_half
                          ? static_cast<float>(magnitude) * 0x1p-24F
                          : std::bit_cast<float>((magnitude << 13) + (exponent_apart << 23));
  return (half & 0x8000U) != 0 ? -value : value;
}

std::optional<std::uint16_t> as_half(float value) {
  const float magnitude = std::abs(value);
  if (magnitude > 65504.0F) return std::nullopt;
  const std::uint32_t bits =
      magnitude < 0x1p-14F
          ? static_cast<std::uint32_t>(magnitude * 0x1p24F)
          : (std::bit_cast<std::uint32_t>(magnitude) >> 13) - (exponent_apart << 10);
  const auto half = static_cast<std::uint16_t>(bits | (std::signbit(value) ? 0x8000U : 0U));
  return from_half(half) == value ? std::optional(half) : std::nullopt;
}

ScaleType BlockWeights::stored_type(int threads) const {
  const auto float_is_finite = [](float value) { return std::isfinite(value); };
  const auto half_is_finite = [](std::uint16_t half) { return (half & 0x7C00U) != 0x7C00U; };
  const auto is_half = [](float value) { return as_half(value).has_value(); };
  const auto all = [&]<class T>(T, std::span<const std::byte> a, std::span<const std::byte> b,
                                const auto& test) {
    return all_of<T>(a, threads, test) && all_of<T>(b, threads, test);
  };
  bool finite = true;
  if (scale_type == ScaleType::float32) {
    if (all(0.0F, scales, minima, is_half)) return ScaleType::float16;
    finite = all(0.0F, scales, minima, float_is_finite);
  } else if (scale_type == ScaleType::float16) {
    finite = all(std::uint16_t{}, scales, minima, half_is_finite);
  } else {
    finite = all(std::uint16_t{}, scale_factors, minimum_factors, half_is_finite);
  }
  if (!finite) throw std::invalid_argument("a scale or a minimum that is not finite");
  return scale_type;
}

int BlockWeights::zero_point(std::int64_t column, std::int64_t block_index) const {
  if (zero_points.empty()) return minima.empty() ? 1 << (bits - 1) : 0;
  const std::int64_t blocks = num_blocks();
  if (bits == 8) {
    return std::to_integer<int>(
        zero_points[static_cast<std::size_t>(column * blocks + block_index)]);
  }
  const std::int64_t bytes = (blocks + 1) / 2;
  return nibble(zero_points[static_cast<std::size_t>(column * bytes + block_index / 2)],
                block_index % 2 != 0);
}

void BlockWeights::read_column(std::int64_t column, float* out) const {
  for (std::int64_t b = 0; b < num_blocks(); ++b) {
    const auto index = static_cast<std::size_t>(column * num_blocks() + b);
    float scale = number_at(scales, scale_type, index);
    float minimum = minima.empty() ? 0.0F : number_at(minima, scale_type, index);
    if (scale_type == ScaleType::factored) {
      const auto span = static_cast<std::size_t>(column * num_spans() + b * block / factor_span);
      scale *= from_half(read<std::uint16_t>(scale_factors, span));
      if (!minima.empty()) minimum *= from_half(read<std::uint16_t>(minimum_factors, span));
    }
    const int zero = zero_point(column, b);
    const auto source = integers.subspan(index * static_cast<std::size_t>(block * bits / 8));
    const auto count = static_cast<std::size_t>(std::min<std::int64_t>(block, depth - b * block));
    for (std::size_t i = 0; i < count; ++i) {
      const int q = bits == 8 ? std::to_integer<int>(source[i]) : nibble(source[i / 2], i % 2 != 0);
      *out++ = static_cast<float>(q - zero) * scale + minimum;
    }
  }
}

}  // namespace pard
