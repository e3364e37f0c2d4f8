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

}  // namespace pard
