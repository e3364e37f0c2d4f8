#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "folder.h"
#include "pard/types.h"

namespace pard {

// The bytes every token id stands for, so that tokens become text without a tokenizer.
class TokenBytes {
 public:
  // `data` is what docs/onnx-folder.md calls token_bytes.bin. Throws FolderError, naming `file`,
  // where it is cut short, damaged, or of another number of tokens.
  TokenBytes(std::string data, std::int64_t num_tokens, const std::string& file);

  // Bytes, not always whole characters; none for special tokens and for ids outside the table.
  std::string_view operator[](Token token) const;

 private:
  std::uint32_t word(std::size_t index) const;
  std::uint32_t offset(std::size_t index) const { return word(index + 1); }
  std::size_t text_begin() const { return sizeof(std::uint32_t) * (count_ + 2); }

  std::string data_;
  std::size_t count_ = 0;
};

// Reads a folder's table; absent where the folder has none, as those of onnxruntime-genai's builder
// have none. Throws FolderError as TokenBytes does.
std::optional<TokenBytes> read_token_bytes(const std::filesystem::path& folder,
                                           const FolderContract& contract);

}  // namespace pard
