#include "pard/sequence.h"

#include <doctest/doctest.h>

#include <string>

#include "pard/error.h"

namespace pard {
namespace {

TEST_CASE("a sequence's limit is max_new_tokens or the model's max_length, whichever comes first") {
  CHECK(Sequence({1, 2, 3}, {.max_new_tokens = 5}, 100).remaining() == 5);
  CHECK(Sequence({1, 2, 3}, {.max_new_tokens = 5}, 6).remaining() == 3);
  CHECK(Sequence({1, 2, 3}, {.max_new_tokens = 5}, 4).remaining() == 1);
}

TEST_CASE("a prompt that leaves no room for a token is refused with both lengths and a remedy") {
  for (const std::int64_t max_length : {3, 2}) {
    try {
      Sequence({1, 2, 3}, {}, max_length);
      FAIL("accepted");
    } catch (const InvalidArgument& error) {
      CHECK(error.detail().expected == "at most " + std::to_string(max_length - 1) + " tokens");
      CHECK(error.detail().actual == "3 tokens");
      CHECK_FALSE(error.detail().remedy.empty());
    }
  }
}

TEST_CASE("an empty prompt and empty limits are refused") {
  CHECK_THROWS_AS(Sequence({}, {}, 100), InvalidArgument);
  CHECK_THROWS_AS(Sequence({1}, {.max_new_tokens = 0}, 100), InvalidArgument);
  CHECK_THROWS_AS(Sequence({1}, {.max_new_tokens = -3}, 100), InvalidArgument);
  CHECK_THROWS_AS(Sequence({1}, {.sampling = {.temperature = -1.0F}}, 100), InvalidArgument);
}

TEST_CASE("ids are never reused") {
  const Sequence first({1}, {}, 100);
  const Sequence second({1}, {}, 100);
  CHECK(first.id() != second.id());
}

}  // namespace
}  // namespace pard
