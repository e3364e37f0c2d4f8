#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "block_weights.h"
#include "matmul_kernel.h"

namespace pard {

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
