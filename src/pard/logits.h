#pragma once

#include <cstddef>
#include <cstdint>

namespace pard {

enum class DType : std::uint8_t { f32, f16, bf16 };
enum class Device : std::uint8_t { cpu, gpu };

constexpr std::size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// One row of logits: `size` contiguous elements, one per token id, borrowed from the Model that
// wrote them.
struct LogitsRow {
  const void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  std::int64_t size = 0;
};

// The logits a forward returned, borrowed until the Model's next forward: [num_rows, vocab_size],
// rows `row_stride` elements apart, elements of a row contiguous.
struct LogitsView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  std::int64_t num_rows = 0;
  std::int64_t vocab_size = 0;
  std::int64_t row_stride = 0;

  LogitsRow row(std::int64_t index) const {
    const auto offset = static_cast<std::size_t>(index * row_stride) * size_of(dtype);
    return {static_cast<const char*>(data) + offset, dtype, device, vocab_size};
  }

  LogitsView rows(std::int64_t first, std::int64_t count) const {
    return {row(first).data, dtype, device, count, vocab_size, row_stride};
  }
};

}  // namespace pard
