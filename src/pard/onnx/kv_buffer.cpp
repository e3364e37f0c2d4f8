#include "kv_buffer.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <new>

namespace pard {

namespace {

constexpr std::int64_t first_capacity = 256;

}  // namespace

bool KvBuffer::reserve(std::int64_t rows) {
  assert(rows <= max_rows_);
  if (rows <= capacity_) {
    return false;
  }
  KvBuffer larger(shape_, max_rows_, zeroed_, memory_);
  larger.capacity_ = std::min(max_rows_, std::max({rows, first_capacity, 2 * capacity_}));
  const std::size_t bytes_per_row =
      2 * static_cast<std::size_t>(shape_.num_layers) * shape_.row_bytes();
  const auto capacity = static_cast<std::size_t>(larger.capacity_);
  if (capacity > std::numeric_limits<std::size_t>::max() / bytes_per_row) {
    throw std::bad_alloc();
  }
  larger.block_ = memory_->allocate(capacity * bytes_per_row, zeroed_);
  larger.copy_rows(*this);
  *this = std::move(larger);
  return true;
}

std::size_t KvBuffer::offset(std::int64_t row, std::int64_t head) const {
  assert(row < capacity_ && head < shape_.num_heads);
  const std::int64_t place = shape_.layout == KvLayout::heads_first ? head * capacity_ + row
                                                                    : row * shape_.num_heads + head;
  return static_cast<std::size_t>(place * shape_.head_dim) * shape_.element_size;
}

// All of them, those behind the last that counts too: a device may compile each length it copies.
void KvBuffer::copy_rows(const KvBuffer& from) const {
  if (from.capacity_ == 0) {
    return;
  }
  const std::int64_t runs = shape_.layout == KvLayout::heads_first ? shape_.num_heads : 1;
  const std::size_t bytes = from.part_bytes() / static_cast<std::size_t>(runs);
  for (std::size_t i = 0; i < 2 * static_cast<std::size_t>(shape_.num_layers); ++i) {
    for (std::int64_t run = 0; run < runs; ++run) {
      memory_->copy(part(i) + offset(0, run), from.part(i) + from.offset(0, run), bytes);
    }
  }
}

}  // namespace pard
