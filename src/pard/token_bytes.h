#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "types.h"

namespace pard {

// The bytes that every token id stands for. Tokens become text without a tokenizer, and the
// vocabularies of two models can be compared.
class TokenBytes {
 public:
  // `data` is the contents of token_bytes.bin (docs/onnx-folder.md). Throws FolderError, naming
  // `file`, if it is cut short, damaged, or does not hold `num_tokens` tokens.
  TokenBytes(std::string data, std::int64_t num_tokens, const std::string& file);

  // spelled[id] are the bytes of a token; empty for special and unused ids. Throws InvalidArgument
  // if they are 4 GiB or more.
  explicit TokenBytes(std::span<const std::string> spelled);

  // Bytes, not always whole characters; empty for special tokens and for ids outside the table.
  std::string_view operator[](Token token) const;

  std::int64_t size() const { return static_cast<std::int64_t>(count_); }

 private:
  std::uint32_t word(std::size_t index) const;
  std::uint32_t offset(std::size_t index) const { return word(index + 1); }
  std::size_t text_begin() const { return sizeof(std::uint32_t) * (count_ + 2); }

  std::string data_;
  std::size_t count_ = 0;
};

}  // namespace pard
