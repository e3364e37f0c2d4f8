#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <utility>

#include "utf8.h"

namespace pard::json {

namespace {

constexpr int max_depth = 64;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value document() {
    Value value = parse_value(0);
    skip_space();
    if (at_ != text_.size()) {
      fail("text behind the end of the document");
    }
    return value;
  }

 private:
  [[noreturn]] void fail(std::string reason) const {
    const auto end = text_.begin() + static_cast<std::ptrdiff_t>(std::min(at_, text_.size()));
    throw ParseError{1 + static_cast<std::size_t>(std::count(text_.begin(), end, '\n')),
                     std::move(reason)};
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != text_.npos) {
      ++at_;
    }
  }

  bool accept(char wanted) {
    skip_space();
    if (peek() != wanted) {
      return false;
    }
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!accept(wanted)) {
      fail(at_ == text_.size() ? "the text ends too early"
                               : std::string("'") + wanted + "' is missing");
    }
  }

  Value parse_value(int depth) {
    if (depth > max_depth) {
      fail("nested too deeply");
    }
    skip_space();
    switch (peek()) {
      case '{':
        return parse_object(depth);
      case '[':
        return parse_array(depth);
      case '"':
        return {parse_string()};
      case 't':
        return parse_word("true", {true});
      case 'f':
        return parse_word("false", {false});
      case 'n':
        return parse_word("null", {nullptr});
      default:
        return parse_number();
    }
  }

  Value parse_word(std::string_view word, Value value) {
    if (text_.substr(at_, word.size()) != word) {
      fail("no value");
    }
    at_ += word.size();
    return value;
  }

  Value parse_object(int depth) {
    Value::Object members;
    expect('{');
    if (accept('}')) {
      return {std::move(members)};
    }
    do {
      skip_space();
      std::string key = parse_string();
      expect(':');
      members.push_back({std::move(key), parse_value(depth + 1)});
    } while (accept(','));
    expect('}');
    reject_duplicates(members);
    return {std::move(members)};
  }

  void reject_duplicates(const Value::Object& members) const {
    std::vector<std::string_view> keys;
    for (const Member& member : members) {
      keys.push_back(member.key);
    }
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) {
      fail("key '" + std::string(*twice) + "' stands twice in one object");
    }
  }

  Value parse_array(int depth) {
    Value::Array values;
    expect('[');
    if (accept(']')) {
      return {std::move(values)};
    }
    do {
      values.push_back(parse_value(depth + 1));
    } while (accept(','));
    expect(']');
    return {std::move(values)};
  }

  std::size_t skip_digits() {
    const std::size_t first = at_;
    while (peek() >= '0' && peek() <= '9') {
      ++at_;
    }
    return at_ - first;
  }

  Value parse_number() {
    const std::size_t first = at_;
    at_ += peek() == '-';
    const bool zero = peek() == '0';
    const std::size_t digits = skip_digits();
    if (digits == 0 || (zero && digits > 1)) {
      fail(first == text_.size() ? "the text ends too early" : "no value");
    }
    bool whole = true;
    if (peek() == '.') {
      ++at_;
      whole = false;
      if (skip_digits() == 0) {
        fail("a number ends in its point");
      }
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      whole = false;
      at_ += peek() == '+' || peek() == '-';
      if (skip_digits() == 0) {
        fail("a number's exponent is empty");
      }
    }
    const char* begin = text_.data() + first;
    const char* end = text_.data() + at_;
    std::int64_t integer = 0;
    if (whole && std::from_chars(begin, end, integer).ec == std::errc()) {
      return {integer};
    }
    double real = 0;
    if (std::from_chars(begin, end, real).ec != std::errc() || !std::isfinite(real)) {
      fail("a number is out of range");
    }
    return {real};
  }

  std::string parse_string() {
    if (peek() != '"') {
      fail(at_ == text_.size() ? "the text ends too early" : "'\"' is missing");
    }
    ++at_;
    std::string result;
    while (true) {
      if (at_ >= text_.size()) {
        fail("a string is not closed");
      }
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return result;
      }
      if (c == '\\') {
        ++at_;
        parse_escape(result);
      } else if (static_cast<unsigned char>(c) < 0x20) {
        fail("a control character in a string");
      } else {
        copy_character(result);
      }
    }
  }

  void parse_escape(std::string& result) {
    constexpr std::string_view names = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    const char name = peek();
    ++at_;
    if (name == 'u') {
      append_utf8(result, parse_escaped_code());
    } else if (const std::size_t index = names.find(name); name != '\0' && index != names.npos) {
      result.push_back(meanings[index]);
    } else {
      fail("an unknown escape in a string");
    }
  }

  std::uint32_t parse_escaped_code() {
    const std::uint32_t first = parse_hex();
    if (first < 0xD800 || first > 0xDFFF) {
      return first;
    }
    if (first < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const std::uint32_t second = parse_hex();
      if (second >= 0xDC00 && second <= 0xDFFF) {
        return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
      }
    }
    fail("half a surrogate pair in a string");
  }

  std::uint32_t parse_hex() {
    std::uint32_t code = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4) {
      fail("four hex digits are missing in a string");
    }
    at_ += 4;
    return code;
  }

  void copy_character(std::string& result) {
    const std::size_t size = utf8_size(text_.substr(at_));
    if (size == 0) {
      fail("a string is not UTF-8");
    }
    result.append(text_.substr(at_, size));
    at_ += size;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const Value* Value::find(std::string_view key) const {
  if (const Object* members = as<Object>()) {
    for (const Member& member : *members) {
      if (member.key == key) {
        return &member.value;
      }
    }
  }
  return nullptr;
}

std::string Value::kind() const {
  constexpr const char* kinds[] = {"null",     "a boolean", "an integer", "a fraction",
                                   "a string", "a list",    "an object"};
  return kinds[data.index()];
}

Value parse(std::string_view text) { return Parser(text).document(); }

}  // namespace pard::json
