#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pard {

// Appends one code point, at most U+10FFFF and no surrogate.
void append_utf8(std::string& text, std::uint32_t code);

// The bytes of the character `text` begins with; 0 where that is no UTF-8 (RFC 3629: no overlong
// forms, no surrogates) or there is none.
std::size_t utf8_size(std::string_view text);

// Makes whole characters of bytes that come in pieces, cut anywhere. What is no UTF-8 becomes
// U+FFFD, one for every longest beginning of a character, as Unicode recommends (3.9, "maximal
// subparts") and Python's decode(errors="replace") does.
class Utf8Stream {
 public:
  // The characters that are complete with `bytes`; the beginning of another one waits.
  std::string feed(std::string_view bytes);

  // At the end: U+FFFD for a character that was begun.
  std::string flush();

 private:
  std::string begun_;  // at most three bytes
};

}  // namespace pard
