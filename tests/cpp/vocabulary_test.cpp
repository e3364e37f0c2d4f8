#include "pard/vocabulary.h"

#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "folders.h"
#include "pard/error.h"

namespace pard {
namespace {

using test::mentions;
using test::message_of;

ModelInfo model_of(const std::vector<std::string>& spelled) {
  ModelInfo info{.name = "of " + std::to_string(spelled.size()), .vocab_size = 8, .max_length = 8};
  info.num_tokens = std::ssize(spelled);
  info.token_bytes = std::make_shared<TokenBytes>(spelled);
  return info;
}

TEST_CASE("vocabularies: ids that both know are compared, ids that one alone knows are named") {
  // 0: special in both; 2: special in the draft; 3: special in the target; 4: behind the target's
  const ModelInfo target = model_of({"", "a", "b", ""});
  const ModelInfo draft = model_of({"", "a", "", "c", "d", ""});
  const auto compared = compare_vocabularies(target, draft);
  REQUIRE(compared);
  CHECK(compared->num_equal == 1);
  CHECK(compared->different.empty());
  CHECK(compared->only_in_target == std::vector<Token>{2});
  CHECK(compared->only_in_draft == std::vector<Token>{3, 4});
  CHECK_NOTHROW(check_compatible(target, draft));
  CHECK_NOTHROW(check_compatible(draft, target));
}

TEST_CASE("vocabularies: an id that means other text is refused, named with both spellings") {
  const ModelInfo target = model_of({"a", "b", "e"});
  const ModelInfo draft = model_of({"a", "c", "x"});
  CHECK(compare_vocabularies(target, draft)->different == std::vector<Token>{1, 2});
  const auto refused = [](const ModelInfo& one, const ModelInfo& other) {
    return message_of<IncompatibleModels>([&] { check_compatible(one, other); });
  };
  CHECK(mentions(refused(target, draft), "2 of the 3 token ids that both know"));
  CHECK(mentions(refused(target, draft), "expected token 1 to be 'b', as in the target, got 'c'"));
  CHECK(mentions(refused(model_of({"\xE2\x82\n"}), draft), R"(to be '\xe2\x82\x0a')"));
}

TEST_CASE("vocabularies: without a table nothing is compared, and sizes alone refuse nobody") {
  const ModelInfo target = model_of({"a", "b"});
  const ModelInfo draft{.name = "draft", .vocab_size = 128, .max_length = 8, .num_tokens = 100};
  CHECK_FALSE(compare_vocabularies(target, draft));
  CHECK_FALSE(compare_vocabularies(draft, target));
  CHECK_NOTHROW(check_compatible(target, draft));
  CHECK_NOTHROW(check_compatible(draft, target));
}

TEST_CASE("vocabularies: what is proposed are tokens of both") {
  ModelInfo target{.name = "target", .vocab_size = 104, .max_length = 8, .num_tokens = 100};
  ModelInfo draft{.name = "draft", .vocab_size = 128, .max_length = 8};
  CHECK(num_proposable(target, draft) == 100);
  target.num_tokens.reset();
  CHECK(num_proposable(target, draft) == 104);
  draft.num_tokens = 99;
  CHECK(num_proposable(target, draft) == 99);
}

}  // namespace
}  // namespace pard
