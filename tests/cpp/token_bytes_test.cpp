#include "pard/token_bytes.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "folders.h"
#include "pard/error.h"
#include "pard/onnx/folder.h"

namespace pard {
namespace {

using test::mentions;
using test::message_of;

std::string words(std::initializer_list<std::uint32_t> values) {
  std::string bytes;
  for (const std::uint32_t value : values) {
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(value >> shift));
  }
  return bytes;
}

const std::string good = words({3, 0, 0, 2, 5}) + "ab\xE2\x82\xAC";

TEST_CASE("token bytes: every token's own, none for others") {
  const TokenBytes table(good, 3, "f");
  CHECK(table[0].empty());
  CHECK(table[1] == "ab");
  CHECK(table[2] == "\xE2\x82\xAC");
  for (const Token token : {-1, 3, INT32_MAX, INT32_MIN}) CHECK(table[token].empty());
  CHECK(TokenBytes(words({0, 0}), 0, "f")[0].empty());
}

TEST_CASE("token bytes: a table made of spellings is the file's") {
  const std::vector<std::string> spelled{"", "ab", "\xE2\x82\xAC"};
  const TokenBytes table(spelled), read(good, 3, "f");
  REQUIRE(table.size() == 3);
  for (Token token = -1; token <= 3; ++token) CHECK(table[token] == read[token]);
  CHECK(TokenBytes(std::vector<std::string>{}).size() == 0);
}

TEST_CASE("token bytes: a table cut short anywhere is refused, and so is one too long") {
  for (std::size_t size = 0; size < good.size(); ++size) {
    CAPTURE(size);
    CHECK_THROWS_AS(TokenBytes(good.substr(0, size), 3, "f"), FolderError);
  }
  CHECK_THROWS_AS(TokenBytes(good + "x", 3, "f"), FolderError);
}

TEST_CASE("token bytes: an error names file, expected and actual") {
  const auto error = [](const std::string& data, std::int64_t num_tokens) {
    return message_of<FolderError>([&] { TokenBytes(data, num_tokens, "the/file"); });
  };
  CHECK(mentions(error(good, 4), "'the/file'"));
  CHECK(mentions(error(good, 4), "expected 4 tokens, as the folder's contract says, got 3"));
  CHECK(mentions(error("", 4), "got nothing"));
  CHECK(mentions(error(good.substr(0, 16), 3), "cut short"));
  CHECK(mentions(error(words({3, 0, 4, 2, 5}) + "abcde", 3), "got 2 after 4"));
  CHECK(mentions(error(words({3, 0, 0, 2, 0xFFFFFFFF}) + "abcde", 3), "got 25"));
  CHECK(mentions(error(words({0xFFFFFFFF}), 0xFFFFFFFF), "cut short"));
}

TEST_CASE("token bytes: a folder may have none; a broken one is refused") {
  const test::Scratch scratch;
  FolderContract contract;
  contract.vocab_size = 5;
  contract.num_tokens = 3;
  CHECK_FALSE(read_token_bytes(scratch.path(), contract));
  scratch.write("token_bytes.bin", good);
  CHECK((*read_token_bytes(scratch.path(), contract))[1] == "ab");
  contract.num_tokens = std::nullopt;  // then as wide as a row
  CHECK(mentions(message_of<FolderError>([&] { read_token_bytes(scratch.path(), contract); }),
                 "expected 5 tokens"));
  std::filesystem::remove(scratch.path() / "token_bytes.bin");
  std::filesystem::create_directory(scratch.path() / "token_bytes.bin");
  CHECK_THROWS_AS(read_token_bytes(scratch.path(), contract), FolderError);
}

}  // namespace
}  // namespace pard
