#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "matmul_kernel.h"

namespace pard {

// Weights [num_columns, depth] as a MatMulNBits node holds them: blocks along the depth, the last
// one filled up.
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
};

// Weights repacked for a kernel, in memory of their own.
class PackedWeights {
 public:
  // Packs on up to `threads` threads. Sessions of a process that hold the same weights share one
  // copy. Throws std::invalid_argument for scales or minima that are not finite, and
  // std::bad_alloc.
  static std::shared_ptr<const PackedWeights> make(const BlockWeights& weights,
                                                   const MatmulKernel& kernel, int threads);

  PackedWeights(const BlockWeights& weights, const MatmulKernel& kernel, int threads);
  PackedWeights(const PackedWeights&) = delete;
  PackedWeights& operator=(const PackedWeights&) = delete;

  const PackedMatrix& matrix() const { return matrix_; }

 private:
  void pack_tile(const BlockWeights& weights, std::int64_t tile);
  void pack_factors(const BlockWeights& weights, std::int64_t first, int columns, std::int64_t span,
                    std::byte* out) const;

  PackedMatrix matrix_;
  std::unique_ptr<std::byte, void (*)(std::byte*)> memory_{nullptr, nullptr};
};

}  // namespace pard
