#include "kv_buffer.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

namespace pard {

namespace {

constexpr std::int64_t first_capacity = 256;

}  // namespace

bool KvBuffer::reserve(std::int64_t rows, std::int64_t kept, const Allocate& allocate) {
  assert(kept <= rows && rows <= max_rows_);
  if (rows <= capacity_) {
    return false;
  }
  KvBuffer larger(shape_, max_rows_, growable_);
  larger.capacity_ =
      growable_ ? std::min(max_rows_, std::max({rows, first_capacity, 2 * capacity_})) : max_rows_;
  const std::size_t bytes_per_row =
      2 * static_cast<std::size_t>(shape_.num_layers) * shape_.row_bytes();
  const auto capacity = static_cast<std::size_t>(larger.capacity_);
  if (capacity > std::numeric_limits<std::size_t>::max() / bytes_per_row) {
    throw std::bad_alloc();
  }
  larger.block_ = allocate(capacity * bytes_per_row);
  if (growable_) {
    larger.copy_rows(*this, std::min(kept, capacity_));
  }
  *this = std::move(larger);
  return true;
}

const std::byte* KvBuffer::head(std::size_t index, std::int64_t row, std::int64_t head) const {
  assert(row < capacity_ && head < shape_.num_heads);
  const std::int64_t place = shape_.layout == KvLayout::heads_first ? head * capacity_ + row
                                                                    : row * shape_.num_heads + head;
  return part(index) + static_cast<std::size_t>(place * shape_.head_dim) * shape_.element_size;
}

void KvBuffer::copy_rows(const KvBuffer& from, std::int64_t rows) const {
  const bool by_head = shape_.layout == KvLayout::heads_first;
  const std::size_t runs = by_head ? static_cast<std::size_t>(shape_.num_heads) : 1;
  const std::size_t row = shape_.row_bytes() / runs;
  if (rows == 0) {
    return;
  }
  for (std::size_t i = 0; i < 2 * static_cast<std::size_t>(shape_.num_layers); ++i) {
    for (std::size_t run = 0; run < runs; ++run) {
      std::memcpy(part(i) + run * static_cast<std::size_t>(capacity_) * row,
                  from.part(i) + run * static_cast<std::size_t>(from.capacity_) * row,
                  static_cast<std::size_t>(rows) * row);
    }
  }
}

}  // namespace pard
