#include "pard/verify.h"

#include <doctest/doctest.h>

#include <vector>

namespace pard {
namespace {

TEST_CASE("verify accepts the longest prefix that equals the target's choices") {
  const std::vector<Token> choices = {7, 8, 9, 10};
  const auto verdict_of = [&](std::vector<Token> proposals) {
    return verify(proposals, [&](int i) { return choices[static_cast<std::size_t>(i)]; });
  };

  SUBCASE("no proposals: the target's choice") {
    CHECK(verdict_of({}).num_accepted == 0);
    CHECK(verdict_of({}).next_token == 7);
  }
  SUBCASE("a wrong first proposal: its correction") {
    CHECK(verdict_of({1, 8, 9}).num_accepted == 0);
    CHECK(verdict_of({1, 8, 9}).next_token == 7);
  }
  SUBCASE("a wrong one in the middle: later ones do not count, right or not") {
    CHECK(verdict_of({7, 1, 9}).num_accepted == 1);
    CHECK(verdict_of({7, 1, 9}).next_token == 8);
  }
  SUBCASE("all right: a bonus token") {
    CHECK(verdict_of({7, 8, 9}).num_accepted == 3);
    CHECK(verdict_of({7, 8, 9}).next_token == 10);
  }
}

TEST_CASE("verify looks at no row behind the one that ends the round") {
  std::vector<int> rows;
  const std::vector<Token> proposals = {5, 6, 7};
  verify(proposals, [&](int i) {
    rows.push_back(i);
    return i == 0 ? 5 : 0;
  });
  CHECK(rows == std::vector<int>{0, 1});
}

}  // namespace
}  // namespace pard
