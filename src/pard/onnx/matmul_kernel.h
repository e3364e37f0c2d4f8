#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pard {

// How scales and minima of blocks are stored.
enum class ScaleType : std::uint8_t {
  float32,
  float16,
  factored,  // int8, times a float16 that 256 of the depth share
};
constexpr int factor_span = 256;
constexpr int bytes_of(ScaleType type) {
  return type == ScaleType::float32 ? 4 : type == ScaleType::float16 ? 2 : 1;
}

// Weights [num_columns, depth] of a product: rows [R, depth] times weights transposed. They are
// integers of 4 or 8 bits in blocks along the depth; a weight is q * scale + minimum, or
// (q - zero point) * scale. They lie as the kernels read them, tile after tile:
//
//   tile     as many columns of the product as a vector register has integers
//   span     where scales are factored: the factors of the tile's columns, those of scales and
//            those of minima, then the blocks of the span
//   block    scales of the tile's columns, their offsets if any, then the groups of the block
//   group    32 of the depth (16 in blocks of 16), in quads of four: a quad of every column in
//            turn. Of 4 bits, the quads of the second half lie above those of the first.
struct PackedMatrix {
  enum class Offsets : std::uint8_t {
    none,
    zero_points,  // uint8
    minima,       // of the scales' type
  };

  std::int64_t num_columns = 0;
  std::int64_t depth = 0;
  int bits = 4;
  int block = 32;
  ScaleType scales = ScaleType::float32;
  Offsets offsets = Offsets::none;
  int tile = 0;                       // of the kernel they are packed for
  const std::byte* blocks = nullptr;  // tile by tile, the blocks in turn

  int group() const { return block < 32 ? block : 32; }
  std::int64_t num_blocks() const { return (depth + block - 1) / block; }
  std::int64_t num_groups() const { return num_blocks() * (block / group()); }
  std::int64_t num_tiles() const { return (num_columns + tile - 1) / tile; }
  std::int64_t num_spans() const {
    return scales == ScaleType::factored ? (depth + factor_span - 1) / factor_span : 0;
  }
  std::size_t span_header_bytes() const {
    return static_cast<std::size_t>(tile * (offsets == Offsets::minima ? 4 : 2));
  }
  std::size_t header_bytes() const {
    const int offset = offsets == Offsets::minima        ? bytes_of(scales)
                       : offsets == Offsets::zero_points ? 1
                                                         : 0;
    return static_cast<std::size_t>(tile * (bytes_of(scales) + offset));
  }
  std::size_t group_bytes() const {
    return static_cast<std::size_t>(tile) * static_cast<std::size_t>(group() * bits / 8);
  }
  std::size_t block_bytes() const {
    return header_bytes() + static_cast<std::size_t>(block / group()) * group_bytes();
  }
  std::size_t tile_bytes() const {
    return static_cast<std::size_t>(num_spans()) * span_header_bytes() +
           static_cast<std::size_t>(num_blocks()) * block_bytes();
  }
  std::size_t bytes() const { return static_cast<std::size_t>(num_tiles()) * tile_bytes(); }

  // Of a row in a panel: see MatmulKernel.
  std::size_t row_bytes() const {
    return static_cast<std::size_t>(num_groups()) * (static_cast<std::size_t>(group()) + 12);
  }
};

// The product by one kind of vector instructions.
//
// An element of the product is a sum over groups, in their order, of integer sums that are exact;
// each is scaled and added with one rounding. So a row has the same bits whatever rows are with
// it, whoever computes its tiles, and on every kind of machine.
//
// Rows are multiplied in panels, rounded to integers of 8 bits by group:
//
//   group    integers of every row [rows, group], then of each row: the scale; the sum of its
//            integers times -8 or -128, which centers weights; the sum times the scale
struct MatmulKernel {
  const char* name;
  int tile;       // columns
  int most_rows;  // of a panel

  // Rounds `count` rows of `stride` floats apart into a panel. A row that is not finite becomes
  // NaN.
  void (*round_rows)(const PackedMatrix& weights, const float* rows, std::int64_t stride, int count,
                     std::byte* panel);

  // The columns of one tile, for the rows of a panel: out[row * stride + column], column counted
  // from the matrix's first. `bias` has an addend for every column of the matrix, or is null.
  void (*multiply)(const PackedMatrix& weights, std::int64_t tile, const std::byte* panel,
                   int count, const float* bias, float* out, std::int64_t stride);
};

// The fastest that this machine's CPU can run.
const MatmulKernel& matmul_kernel();

// All that it can run, slowest first.
const std::vector<MatmulKernel>& all_matmul_kernels();

}  // namespace pard
