#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "memory.h"

namespace pard {

// How the keys (or values) of one layer lie in a buffer of S rows.
enum class KvLayout : std::uint8_t {
  rows_first,   // [S, H, D]: a past is a prefix of the buffer
  heads_first,  // [H, S, D]: every head has its own run of rows
};

struct KvShape {
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t head_dim = 0;
  std::size_t element_size = 0;
  KvLayout layout = KvLayout::rows_first;

  std::size_t row_bytes() const {
    return static_cast<std::size_t>(num_heads * head_dim) * element_size;
  }
};

// The keys and values of one sequence, in one block that grows geometrically:
//
//   layer 0 keys | layer 0 values | layer 1 keys | ...      each of `capacity` rows
class KvBuffer {
 public:
  // `zeroed`: rows never written are zero, and not what the memory held before.
  KvBuffer(const KvShape& shape, std::int64_t max_rows, bool zeroed,
           std::shared_ptr<const Memory> memory)
      : shape_(shape), max_rows_(max_rows), zeroed_(zeroed), memory_(std::move(memory)) {}

  // Makes room for `rows` rows, at most max_rows; those there are keep their contents. True where
  // the buffer has moved. On an exception nothing has changed.
  bool reserve(std::int64_t rows);

  std::int64_t capacity() const { return capacity_; }
  const KvShape& shape() const { return shape_; }
  const Memory& memory() const { return *memory_; }

  // Layer after layer, keys before values: 2 * num_layers parts.
  std::byte* part(std::size_t index) const { return block_.data() + index * part_bytes(); }
  std::size_t part_bytes() const {
    return static_cast<std::size_t>(capacity_) * shape_.row_bytes();
  }

  // Where in a part one head of one row begins: head_dim elements.
  std::size_t offset(std::int64_t row, std::int64_t head) const;

 private:
  void copy_rows(const KvBuffer& from) const;

  KvShape shape_;
  std::int64_t max_rows_;
  bool zeroed_;
  std::shared_ptr<const Memory> memory_;
  std::int64_t capacity_ = 0;
  MemoryBlock block_;
};

}  // namespace pard
