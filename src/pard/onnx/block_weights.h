#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "matmul_kernel.h"

namespace pard {

// Weights [num_columns, depth] as a MatMulNBits node holds them: blocks along the depth, the last
// one padded.
struct BlockWeights {
  std::int64_t num_columns = 0;
  std::int64_t depth = 0;
  int bits = 4;
  int block = 32;
  std::span<const std::byte> integers{};  // [columns, blocks, block * bits / 8]; the first lowest
  ScaleType scale_type = ScaleType::float32;
  std::span<const std::byte> scales{};       // [columns, blocks], of scale_type
  std::span<const std::byte> minima{};       // the same; not with zero points
  std::span<const std::byte> zero_points{};  // uint8 [columns, blocks], 4 bits packed by column
  // Of factored scales and minima: float16 [columns, spans].
  std::span<const std::byte> scale_factors{};
  std::span<const std::byte> minimum_factors{};

  std::int64_t num_blocks() const { return (depth + block - 1) / block; }
  std::int64_t num_spans() const { return (depth + factor_span - 1) / factor_span; }

  // What is subtracted from an integer before it is scaled, where there are no minima.
  int zero_point(std::int64_t column, std::int64_t block_index) const;

  // Writes a column's weights, `depth` of them: q * scale + minimum, or (q - zero point) * scale.
  void read_column(std::int64_t column, float* out) const;

  // How scales and minima are best stored: as float16 where they all are. Looks through them on up
  // to `threads` threads; throws std::invalid_argument where one is not finite.
  ScaleType stored_type(int threads) const;
};

// The float16 that a float32 is, where it is one.
std::optional<std::uint16_t> as_half(float value);
float from_half(std::uint16_t half);

template <class T>
T read(std::span<const std::byte> bytes, std::size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

// Calls task(begin, end) for parts of [0, count), on several threads where there is much to do.
template <class Task>
void in_parts(std::int64_t count, std::size_t bytes, int threads, const Task& task) {
  constexpr std::size_t bytes_per_thread = 1 << 20;
  const auto useful = static_cast<std::int64_t>(bytes / bytes_per_thread);
  const std::int64_t parts = std::clamp<std::int64_t>(useful, 1, std::max(threads, 1));
  const auto begin_of = [&](std::int64_t part) { return count * part / parts; };
  std::vector<std::jthread> others;
  for (std::int64_t part = 1; part < parts; ++part) {
    others.emplace_back([&, part] { task(begin_of(part), begin_of(part + 1)); });
  }
  task(0, begin_of(1));
}

}  // namespace pard
