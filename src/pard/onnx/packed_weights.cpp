#include "packed_weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

namespace pard {

namespace {

constexpr std::size_t bytes_per_thread = 1 << 20;
constexpr std::size_t huge_page = 1 << 21;

// Calls task(begin, end) for parts of [0, count), on several threads where there is much to do.
template <class Task>
void in_parts(std::int64_t count, std::size_t bytes, int threads, const Task& task) {
  const auto useful = static_cast<std::int64_t>(bytes / bytes_per_thread);
  const std::int64_t parts = std::clamp<std::int64_t>(useful, 1, std::max(threads, 1));
  const auto begin_of = [&](std::int64_t part) { return count * part / parts; };
  std::vector<std::jthread> others;
  for (std::int64_t part = 1; part < parts; ++part) {
    others.emplace_back([&, part] { task(begin_of(part), begin_of(part + 1)); });
  }
  task(0, begin_of(1));
}

// Between finite float16 and float32. Nothing on the way is subnormal in float32: a caller may have
// such numbers flushed to zero.
constexpr std::uint32_t exponent_apart = 127 - 15;
constexpr std::uint32_t first_normal_half = 0x0400;

float from_half(std::uint16_t half) {
  const std::uint32_t magnitude = half & 0x7FFFU;
  const float value = magnitude < first_normal_half
                          ? static_cast<float>(magnitude) * 0x1p-24F
                          : std::bit_cast<float>((magnitude << 13) + (exponent_apart << 23));
  return (half & 0x8000U) != 0 ? -value : value;
}

// The float16 that a float32 is, where it is one.
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

template <class T>
T read(std::span<const std::byte> bytes, std::size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

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

// How scales and minima are to be stored: as float16 where they all are.
ScaleType stored_type(const BlockWeights& weights, int threads) {
  const auto float_is_finite = [](float value) { return std::isfinite(value); };
  const auto half_is_finite = [](std::uint16_t half) { return (half & 0x7C00U) != 0x7C00U; };
  const auto is_half = [](float value) { return as_half(value).has_value(); };
  const auto all = [&]<class T>(T, std::span<const std::byte> a, std::span<const std::byte> b,
                                const auto& test) {
    return all_of<T>(a, threads, test) && all_of<T>(b, threads, test);
  };
  bool finite = true;
  if (weights.scale_type == ScaleType::float32) {
    if (all(0.0F, weights.scales, weights.minima, is_half)) return ScaleType::float16;
    finite = all(0.0F, weights.scales, weights.minima, float_is_finite);
  } else if (weights.scale_type == ScaleType::float16) {
    finite = all(std::uint16_t{}, weights.scales, weights.minima, half_is_finite);
  } else {
    finite = all(std::uint16_t{}, weights.scale_factors, weights.minimum_factors, half_is_finite);
  }
  if (!finite) throw std::invalid_argument("a scale or a minimum that is not finite");
  return weights.scale_type;
}

// Puts a number, given as one type, where it is stored as another.
void put(std::span<const std::byte> numbers, ScaleType given, std::size_t index, ScaleType stored,
         std::byte* out) {
  if (given == stored) {
    const auto size = static_cast<std::size_t>(bytes_of(given));
    std::memcpy(out, numbers.data() + size * index, size);
  } else {
    const std::uint16_t half = *as_half(read<float>(numbers, index));
    std::memcpy(out, &half, sizeof(half));
  }
}

using Digest = std::array<std::uint64_t, 2>;

// Not against an enemy: tells weights apart that a process happens to open.
Digest digest_of(std::span<const std::byte> bytes) {
  std::array<std::uint64_t, 4> lanes{0x9E3779B97F4A7C15U, 0xC2B2AE3D27D4EB4FU, 0x165667B19E3779F9U,
                                     bytes.size()};
  const auto mix = [](std::uint64_t lane, std::uint64_t word) {
    return std::rotl((lane ^ word) * 0xD6E8FEB86659FD93U, 32);
  };
  std::size_t at = 0;
  for (; at + 32 <= bytes.size(); at += 32) {
    std::array<std::uint64_t, 4> words;
    std::memcpy(words.data(), bytes.data() + at, sizeof(words));
    for (std::size_t i = 0; i < 4; ++i) lanes[i] = mix(lanes[i], words[i]);
  }
  std::array<std::uint64_t, 4> rest{};
  if (at < bytes.size()) std::memcpy(rest.data(), bytes.data() + at, bytes.size() - at);
  Digest digest{};
  for (std::size_t i = 0; i < 4; ++i) {
    digest[0] = mix(digest[0], mix(lanes[i], rest[i]));
    digest[1] = mix(digest[1] + i, digest[0]);
  }
  return digest;
}

// Two bytes of 4-bit integers as four bytes.
std::uint32_t spread(std::uint32_t two_bytes) {
  return (two_bytes & 0x000FU) | (two_bytes & 0x00F0U) << 4 | (two_bytes & 0x0F00U) << 8 |
         (two_bytes & 0xF000U) << 12;
}

// A column's integers of a group, into their places among the quads of the tile.
void place_group(const BlockWeights& weights, const std::byte* source, int group, int tile,
                 std::byte* out) {
  const std::size_t apart = 4 * static_cast<std::size_t>(tile);  // of quads
  if (weights.bits == 8) {
    for (int quad = 0; quad < group / 4; ++quad) {
      std::memcpy(out + static_cast<std::size_t>(quad) * apart, source + 4 * quad, 4);
    }
    return;
  }
  const int half = group / 8;  // of the quads
  for (int quad = 0; quad < half; ++quad) {
    std::uint16_t low = 0;
    std::uint16_t high = 0;
    std::memcpy(&low, source + 2 * quad, 2);
    std::memcpy(&high, source + 2 * (half + quad), 2);
    const std::uint32_t both = spread(low) | spread(high) << 4;
    std::memcpy(out + static_cast<std::size_t>(quad) * apart, &both, 4);
  }
}

std::byte zero_point_at(const BlockWeights& weights, std::int64_t column, std::int64_t block) {
  const std::int64_t blocks = weights.num_blocks();
  if (weights.bits == 8) {
    return weights.zero_points[static_cast<std::size_t>(column * blocks + block)];
  }
  const std::int64_t bytes = (blocks + 1) / 2;
  const std::byte both = weights.zero_points[static_cast<std::size_t>(column * bytes + block / 2)];
  return block % 2 == 0 ? both & std::byte{0x0F} : both >> 4;
}

}  // namespace

PackedWeights::PackedWeights(const BlockWeights& weights, const MatmulKernel& kernel, int threads) {
  matrix_.num_columns = weights.num_columns;
  matrix_.depth = weights.depth;
  matrix_.bits = weights.bits;
  matrix_.block = weights.block;
  matrix_.tile = kernel.tile;
  if (!weights.minima.empty()) {
    matrix_.offsets = PackedMatrix::Offsets::minima;
  } else if (!weights.zero_points.empty()) {
    matrix_.offsets = PackedMatrix::Offsets::zero_points;
  }

  matrix_.scales = stored_type(weights, threads);

  // Weights are read from end to end in every forward: large pages spare the walks to find them.
  const bool is_large = matrix_.bytes() >= 2 * huge_page;
  const std::size_t alignment = is_large ? huge_page : 64;
  const std::size_t size = (matrix_.bytes() + alignment - 1) / alignment * alignment;
  auto* const memory = static_cast<std::byte*>(std::aligned_alloc(alignment, size));
  if (memory == nullptr) throw std::bad_alloc();
  memory_ = {memory, [](std::byte* data) { std::free(data); }};
  if (is_large) ::madvise(memory, size, MADV_HUGEPAGE);
  matrix_.blocks = memory;
  in_parts(matrix_.num_tiles(), matrix_.bytes(), threads,
           [&](std::int64_t begin, std::int64_t end) {
             for (std::int64_t tile = begin; tile < end; ++tile) pack_tile(weights, tile);
           });
}

void PackedWeights::pack_tile(const BlockWeights& weights, std::int64_t tile) {
  const int width = matrix_.tile;
  const int group = matrix_.group();
  const auto tile_bytes = matrix_.tile_bytes();
  std::byte* const begin = memory_.get() + static_cast<std::size_t>(tile) * tile_bytes;
  std::memset(begin, 0, tile_bytes);  // columns behind the last: scales of zero
  const std::int64_t blocks = matrix_.num_blocks();
  const auto source_bytes = static_cast<std::size_t>(matrix_.block * matrix_.bits / 8);
  const auto source_group = static_cast<std::size_t>(group * matrix_.bits / 8);
  const std::int64_t first = tile * width;
  const auto columns = static_cast<int>(std::min<std::int64_t>(width, matrix_.num_columns - first));
  const bool minima = matrix_.offsets == PackedMatrix::Offsets::minima;
  const auto scale_bytes = static_cast<std::size_t>(bytes_of(matrix_.scales));
  const std::int64_t blocks_per_span = factor_span / matrix_.block;
  std::byte* block = begin;
  for (std::int64_t b = 0; b < blocks; ++b, block += matrix_.block_bytes()) {
    if (matrix_.num_spans() > 0 && b % blocks_per_span == 0) {
      pack_factors(weights, first, columns, b / blocks_per_span, block);
      block += matrix_.span_header_bytes();
    }
    std::byte* const offsets = block + static_cast<std::size_t>(width) * scale_bytes;
    for (int c = 0; c < columns; ++c) {
      const auto column = static_cast<std::size_t>(c);
      const auto index = static_cast<std::size_t>((first + c) * blocks + b);
      put(weights.scales, weights.scale_type, index, matrix_.scales, block + column * scale_bytes);
      if (minima) {
        put(weights.minima, weights.scale_type, index, matrix_.scales,
            offsets + column * scale_bytes);
      } else if (matrix_.offsets == PackedMatrix::Offsets::zero_points) {
        offsets[column] = zero_point_at(weights, first + c, b);
      }
      const std::byte* source = weights.integers.data() + index * source_bytes;
      std::byte* out = block + matrix_.header_bytes() + 4 * column;
      for (int g = 0; g < matrix_.block / group; ++g) {
        place_group(weights, source, group, width, out);
        source += source_group;
        out += matrix_.group_bytes();
      }
    }
  }
}

// The factors of a tile's columns for one span: those of scales, then those of minima.
void PackedWeights::pack_factors(const BlockWeights& weights, std::int64_t first, int columns,
                                 std::int64_t span, std::byte* out) const {
  for (const auto factors : {weights.scale_factors, weights.minimum_factors}) {
    for (int c = 0; c < columns && !factors.empty(); ++c) {
      const auto index = static_cast<std::size_t>((first + c) * weights.num_spans() + span);
      std::memcpy(out + 2 * c, factors.data() + 2 * index, 2);
    }
    out += 2 * matrix_.tile;
  }
}

std::shared_ptr<const PackedWeights> PackedWeights::make(const BlockWeights& weights,
                                                         const MatmulKernel& kernel, int threads) {
  using Key = std::array<std::uint64_t, 11>;
  static std::mutex mutex;
  static std::map<Key, std::weak_ptr<const PackedWeights>> known;

  const auto column_bytes = weights.integers.size() / static_cast<std::size_t>(weights.num_columns);
  std::vector<Digest> digests(static_cast<std::size_t>(weights.num_columns));
  in_parts(weights.num_columns, weights.integers.size(), threads,
           [&](std::int64_t begin, std::int64_t end) {
             for (std::int64_t i = begin; i < end; ++i) {
               const auto column = static_cast<std::size_t>(i);
               digests[column] =
                   digest_of(weights.integers.subspan(column * column_bytes, column_bytes));
             }
           });
  const Digest integers = digest_of(std::as_bytes(std::span(digests)));
  const std::array scales{digest_of(weights.scales), digest_of(weights.minima),
                          digest_of(weights.zero_points), digest_of(weights.scale_factors),
                          digest_of(weights.minimum_factors)};
  const Digest others = digest_of(std::as_bytes(std::span(scales)));
  const Key key{static_cast<std::uint64_t>(weights.num_columns),
                static_cast<std::uint64_t>(weights.depth),
                static_cast<std::uint64_t>(weights.bits),
                static_cast<std::uint64_t>(weights.block),
                static_cast<std::uint64_t>(weights.scale_type),
                static_cast<std::uint64_t>(weights.minima.empty()),
                reinterpret_cast<std::uintptr_t>(kernel.multiply),
                integers[0],
                integers[1],
                others[0],
                others[1]};
  const std::scoped_lock lock(mutex);
  std::erase_if(known, [](const auto& entry) { return entry.second.expired(); });
  if (auto shared = known[key].lock()) return shared;
  auto made = std::make_shared<const PackedWeights>(weights, kernel, threads);
  known[key] = made;
  return made;
}

}  // namespace pard
