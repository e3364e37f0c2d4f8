#include "pard/onnx/utf8.h"

#include <doctest/doctest.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace pard {
namespace {

constexpr const char* replacement = "\xEF\xBF\xBD";

std::string decode_in_pieces(std::string_view bytes, std::size_t first, std::size_t second) {
  Utf8Stream stream;
  std::string text = stream.feed(bytes.substr(0, first));
  text += stream.feed(bytes.substr(first, second - first));
  text += stream.feed(bytes.substr(second));
  return text + stream.flush();
}

std::string decode_whole(std::string_view bytes) {
  return decode_in_pieces(bytes, bytes.size(), bytes.size());
}

TEST_CASE("utf8 stream: a character is out with its last byte, not before") {
  for (const std::string_view character : {"a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"}) {
    Utf8Stream stream;
    for (std::size_t i = 0; i + 1 < character.size(); ++i) {
      CHECK(stream.feed(character.substr(i, 1)).empty());
    }
    CHECK(stream.feed(character.substr(character.size() - 1)) == character);
    CHECK(stream.flush().empty());
  }
}

TEST_CASE("utf8 stream: wherever bytes are cut, the text is the same") {
  const std::string_view bytes =
      "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80 "
      "\xE2\x82z\xF0\x9F\x98\xC3\xED\xA0\x80\xFF\xC0\xAF!\xF4\x8F\xBF";
  const std::string whole = decode_whole(bytes);
  for (std::size_t second = 0; second <= bytes.size(); ++second) {
    for (std::size_t first = 0; first <= second; ++first) {
      CHECK(decode_in_pieces(bytes, first, second) == whole);
    }
  }
}

TEST_CASE("utf8 stream: a begun character is replaced when the stream ends, once") {
  for (const std::string_view begun : {"\xC3", "\xE2", "\xE2\x82", "\xF0", "\xF0\x9F\x98"}) {
    Utf8Stream stream;
    CHECK(stream.feed(begun).empty());
    CHECK(stream.flush() == replacement);
    CHECK(stream.flush().empty());
    CHECK(stream.feed("\x98z") == std::string(replacement) + "z");
  }
}

// Rows of the Unicode Standard's tables 3-8 to 3-11 (chapter 3.9), and RFC 3629's limits.
TEST_CASE("utf8 stream: one replacement for every maximal subpart") {
  const auto decodes = [](std::string_view bytes, std::string expected) {
    for (std::size_t at; (at = expected.find('?')) != expected.npos;) {
      expected.replace(at, 1, replacement);
    }
    CHECK(decode_whole(bytes) == expected);
  };
  decodes("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", "????????A");
  decodes("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", "????????A");
  decodes("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", "?????A??B");
  decodes("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "????A");
  decodes("\xF4\x8F\xBF\xBF\xEE\x80\x80\xED\x9F\xBF", "\xF4\x8F\xBF\xBF\xEE\x80\x80\xED\x9F\xBF");
  decodes(std::string_view("\0\x7F", 2), std::string("\0\x7F", 2));
}

// make_graphs.py had Python decode every short string of bytes that matter, and longer random ones.
TEST_CASE("utf8 stream: what Python's decode(errors='replace') gives") {
  const char* graphs = std::getenv("PARD_TEST_GRAPHS");
  if (graphs == nullptr) {
    MESSAGE("skipped: PARD_TEST_GRAPHS is not set");
    return;
  }
  const auto from_hex = [](const std::string& hex) {
    std::string bytes;
    for (std::size_t i = 1; i + 1 < hex.size(); i += 2) {  // behind a dash: strings may be empty
      bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    return bytes;
  };
  std::ifstream lines(std::string(graphs) + "/utf8_cases.txt");
  std::string bytes;
  std::string expected;
  std::size_t num_cases = 0;
  for (; lines >> bytes >> expected; ++num_cases) {
    if (decode_whole(from_hex(bytes)) != from_hex(expected)) FAIL_CHECK(bytes);
  }
  CHECK(num_cases > 1000);
}

}  // namespace
}  // namespace pard
