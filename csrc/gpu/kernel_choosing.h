#pragma once

// Choosing from logits where a device holds them, by the kernel of a round.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernel_set.h"
#include "pard/logits_device.h"

namespace pard::gpu {

class KernelChoosing final : public LogitsDevice {
 public:
  // Tries the kernels on rows of its own: throws ModelError where they choose other tokens than
  // choose() does on the host.
  explicit KernelChoosing(std::unique_ptr<KernelSet> kernels);

  void choose(const LogitsView& rows, std::span<const RowRequest> requests,
              std::span<std::optional<Token>> tokens) const override;
  void read(void* to, const void* from, std::size_t bytes) const override {
    kernels_->read(to, from, bytes);
  }

 private:
  void reserve(std::size_t rows) const;
  void try_out(DType dtype) const;

  template <class T>
  T* part(std::size_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(slots_.get()) + offset);
  }

  std::unique_ptr<KernelSet> kernels_;

  // What the kernel is given for every row: a slot, of one row. Kept between calls.
  mutable std::size_t capacity_ = 0;
  mutable std::shared_ptr<void> slots_;
  mutable std::vector<std::byte> staged_;
  mutable std::vector<std::int32_t> chosen_;
};

}  // namespace pard::gpu
