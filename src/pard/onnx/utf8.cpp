#include "utf8.h"

#include <algorithm>

namespace pard {

namespace {

// A character by its first byte: how long it is, and what its second byte may be. All later bytes
// are 80..BF.
struct Utf8Lead {
  std::size_t size = 0;  // 0: no character begins so
  unsigned least_second = 0x80;
  unsigned most_second = 0xBF;
};

Utf8Lead utf8_lead(unsigned byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2 || byte > 0xF4) return {};
  if (byte < 0xE0) return {2};
  if (byte < 0xF0) return {3, byte == 0xE0 ? 0xA0U : 0x80U, byte == 0xED ? 0x9FU : 0xBFU};
  return {4, byte == 0xF0 ? 0x90U : 0x80U, byte == 0xF4 ? 0x8FU : 0xBFU};
}

// How many bytes of `text` fit the character that `lead` begins.
std::size_t utf8_fitting(std::string_view text, const Utf8Lead& lead) {
  const std::size_t most = std::min(text.size(), lead.size);
  for (std::size_t i = 1; i < most; ++i) {
    const unsigned byte = static_cast<unsigned char>(text[i]);
    const bool fits =
        i == 1 ? byte >= lead.least_second && byte <= lead.most_second : (byte & 0xC0) == 0x80;
    if (!fits) return i;
  }
  return most;
}

}  // namespace

void append_utf8(std::string& text, std::uint32_t code) {
  const auto byte = [&](std::uint32_t value) { text.push_back(static_cast<char>(value)); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xC0 | code >> 6);
    byte(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    byte(0xE0 | code >> 12);
    byte(0x80 | (code >> 6 & 0x3F));
    byte(0x80 | (code & 0x3F));
  } else {
    byte(0xF0 | code >> 18);
    byte(0x80 | (code >> 12 & 0x3F));
    byte(0x80 | (code >> 6 & 0x3F));
    byte(0x80 | (code & 0x3F));
  }
}

std::size_t utf8_size(std::string_view text) {
  if (text.empty()) return 0;
  const Utf8Lead lead = utf8_lead(static_cast<unsigned char>(text.front()));
  return utf8_fitting(text, lead) == lead.size ? lead.size : 0;
}

std::string Utf8Stream::feed(std::string_view bytes) {
  begun_.append(bytes);
  std::string text;
  std::string_view rest = begun_;
  while (!rest.empty()) {
    const Utf8Lead lead = utf8_lead(static_cast<unsigned char>(rest.front()));
    const std::size_t fitting = utf8_fitting(rest, lead);
    if (lead.size > 0 && fitting == lead.size) {
      text.append(rest.substr(0, fitting));
    } else if (lead.size > 0 && fitting == rest.size()) {
      break;
    } else {
      append_utf8(text, 0xFFFD);
    }
    rest.remove_prefix(std::max<std::size_t>(fitting, 1));
  }
  begun_.erase(0, begun_.size() - rest.size());
  return text;
}

std::string Utf8Stream::flush() {
  std::string text;
  if (!begun_.empty()) append_utf8(text, 0xFFFD);
  begun_.clear();
  return text;
}

}  // namespace pard
