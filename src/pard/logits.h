#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

namespace pard {

enum class DType : std::uint8_t { f32, f16, bf16 };

class LogitsDevice;
constexpr std::size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// One row of logits: `size` contiguous elements, borrowed from the Model that wrote them.
struct LogitsRow {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t size = 0;
  const LogitsDevice* device = nullptr;  // null: `data` is in the host's memory
  const Token* ids = nullptr;  // the token of every element, rising; null: element i is token i's
};

// The logits a forward returned, borrowed until the Model's next forward: [num_rows, vocab_size],
// rows `row_stride` elements apart, elements of a row contiguous.
struct LogitsView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t num_rows = 0;
  std::int64_t vocab_size = 0;
  std::int64_t row_stride = 0;
  const LogitsDevice* device = nullptr;
  const Token* ids = nullptr;  // as of a row

  LogitsRow row(std::int64_t index) const {
    const auto offset = static_cast<std::size_t>(index * row_stride) * size_of(dtype);
    return {static_cast<const char*>(data) + offset, dtype, vocab_size, device, ids};
  }

  LogitsView rows(std::int64_t first, std::int64_t count) const {
    return {row(first).data, dtype, count, vocab_size, row_stride, device, ids};
  }
};

}  // namespace pard
