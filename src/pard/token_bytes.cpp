#include "token_bytes.h"

#include <limits>
#include <utility>

#include "error.h"

namespace pard {

namespace {

[[noreturn]] void refuse_table(const std::string& file, const std::string& expected,
                               const std::string& actual) {
  throw FolderError({"'" + file + "' cannot be read as a table of tokens", expected, actual,
                     "Copy or export the folder again."});
}

}  // namespace

TokenBytes::TokenBytes(std::string data, std::int64_t num_tokens, const std::string& file)
    : data_(std::move(data)), count_(static_cast<std::size_t>(num_tokens)) {
  const std::size_t num_words = data_.size() / sizeof(std::uint32_t);
  if (num_words < 1 || word(0) != count_) {
    refuse_table(file, std::to_string(count_) + " tokens, as the folder's contract says",
                 num_words < 1 ? "nothing" : std::to_string(word(0)));
  }
  if (num_words < count_ + 2) {
    refuse_table(file, std::to_string(count_ + 1) + " offsets", "a file cut short");
  }
  for (std::size_t i = 0; i < count_; ++i) {
    if (offset(i) > offset(i + 1)) {
      refuse_table(file, "offsets that never fall",
                   std::to_string(offset(i + 1)) + " after " + std::to_string(offset(i)));
    }
  }
  if (data_.size() != text_begin() + offset(count_)) {
    refuse_table(file, std::to_string(text_begin() + offset(count_)) + " bytes",
                 std::to_string(data_.size()));
  }
}

TokenBytes::TokenBytes(std::span<const std::string> spelled) : count_(spelled.size()) {
  const auto append = [this](std::size_t value) {
    for (std::size_t i = 0; i < sizeof(std::uint32_t); ++i) {
      data_.push_back(static_cast<char>(value >> 8 * i & 0xFF));
    }
  };
  append(count_);
  std::size_t end = 0;
  append(end);
  for (const std::string& bytes : spelled) append(end += bytes.size());
  if (end > std::numeric_limits<std::uint32_t>::max()) {
    throw InvalidArgument({"The bytes of the tokens are too many", "less than 4 GiB",
                           std::to_string(end) + " bytes", "Check the table."});
  }
  for (const std::string& bytes : spelled) data_ += bytes;
}

std::string_view TokenBytes::operator[](Token token) const {
  if (token < 0 || static_cast<std::size_t>(token) >= count_) return {};
  const auto index = static_cast<std::size_t>(token);
  const std::size_t begin = offset(index);
  return std::string_view(data_).substr(text_begin() + begin, offset(index + 1) - begin);
}

std::uint32_t TokenBytes::word(std::size_t index) const {
  std::uint32_t value = 0;
  for (std::size_t i = sizeof(value); i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(data_[sizeof(value) * index + i]);
  }
  return value;
}

}  // namespace pard
