#include "packed_weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace pard {

namespace {

constexpr std::size_t huge_page = 1 << 21;

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

  matrix_.scales = weights.stored_type(threads);

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
        offsets[column] = static_cast<std::byte>(weights.zero_point(first + c, b));
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
