#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace pard::json {

struct Member;

// A JSON value. Whole numbers that fit are kept exactly, as std::int64_t.
struct Value {
  using Array = std::vector<Value>;
  using Object = std::vector<Member>;  // in the order written; no key twice

  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> data;

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(data); }

  // The value as a T, or null where it is something else.
  template <class T>
  const T* as() const {
    return std::get_if<T>(&data);
  }

  // A member of an object; null where there is none or this is no object.
  const Value* find(std::string_view key) const;

  // What it is, for messages: "a string", "null", ...
  std::string kind() const;
};

struct Member {
  std::string key;
  Value value;
};

// Where and why a text is no JSON. The readers of files turn it into an Error that names the file.
struct ParseError {
  std::size_t line = 0;
  std::string reason;
};

// Strict JSON (RFC 8259): UTF-8, no comments, no trailing commas, no duplicate keys, and nested at
// most 64 deep, so that a hostile file cannot exhaust the stack. Throws ParseError.
Value parse(std::string_view text);

}  // namespace pard::json
