#include "pard/draft.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "fake_pair.h"
#include "pard/error.h"

namespace pard {
namespace {

using test::FakeLanguage;
using test::FakeModel;
using test::FakePair;
using test::Manner;
using test::Method;
using test::prompt_of;

TEST_CASE("a perfect draft is accepted whole, a hostile one not at all") {
  for (const Method method : {Method::parallel, Method::autoregressive}) {
    FakePair perfect(method, Manner::faithful, {.num_speculative_tokens = 4});
    perfect.decoder->add(prompt_of(10), {.max_new_tokens = 51});
    perfect.decoder->run();
    // 1 token from the prefill, then ten rounds of 4 accepted proposals and a bonus token.
    CHECK(perfect.decoder->counts().rounds == 11);
    CHECK(perfect.decoder->counts().accepted == 40);
    CHECK(perfect.decoder->counts().drafted == 40);
    CHECK(perfect.decoder->counts().accepted_at == std::vector<std::int64_t>{10, 10, 10, 10});

    FakePair hostile(method, Manner::hostile, {.num_speculative_tokens = 4});
    hostile.decoder->add(prompt_of(10), {.max_new_tokens = 51});
    hostile.decoder->run();
    CHECK(hostile.decoder->counts().rounds == 51);
    CHECK(hostile.decoder->counts().accepted == 0);
  }
}

TEST_CASE("a parallel draft runs one forward a round, an autoregressive one K") {
  FakePair parallel(Method::parallel, Manner::faithful, {.num_speculative_tokens = 4});
  parallel.decoder->add(prompt_of(10), {.max_new_tokens = 51});
  parallel.decoder->run();
  CHECK(parallel.draft->num_forwards == 10);
  CHECK(parallel.target->num_forwards == 11);

  FakePair autoregressive(Method::autoregressive, Manner::faithful, {.num_speculative_tokens = 4});
  autoregressive.decoder->add(prompt_of(10), {.max_new_tokens = 51});
  autoregressive.decoder->run();
  CHECK(autoregressive.draft->num_forwards == 40);
}

TEST_CASE(
    "with the same seed draft and target meet the same noise: a perfect draft is accepted whole "
    "when sampling") {
  // The autoregressive draft sees its own sampled tokens, so its rows are the target's at every
  // position.
  FakePair pair(Method::autoregressive, Manner::faithful, {.num_speculative_tokens = 4});
  pair.decoder->add(prompt_of(10),
                    {.sampling = {.temperature = 1.0F, .seed = 3}, .max_new_tokens = 51});
  pair.decoder->run();
  CHECK(pair.decoder->counts().accepted == pair.decoder->counts().drafted);
}

TEST_CASE("the first token comes out before the draft has seen anything") {
  FakePair pair(Method::parallel, Manner::faithful, {.num_speculative_tokens = 4});
  pair.decoder->add(prompt_of(40), {.max_new_tokens = 10}, [&](const TokenEvent& event) {
    if (event.sequence.generated().size() == 1) CHECK(pair.draft->num_forwards == 0);
    return true;
  });
  pair.decoder->run();
  CHECK(pair.draft->num_forwards > 0);
}

TEST_CASE("a long prompt is prefilled a chunk a round, while others decode") {
  FakePair pair(Method::parallel, Manner::faithful, {.num_speculative_tokens = 2});
  const auto first = pair.decoder->add(prompt_of(3), {.max_new_tokens = 100});
  pair.decoder->step();
  const auto second = pair.decoder->add(prompt_of(64, 2), {.max_new_tokens = 10});
  for (int chunk = 1; chunk <= 4; ++chunk) {
    const std::int64_t before = first->length();
    pair.decoder->step();
    CHECK(first->length() > before);
    CHECK(second->generated().size() == (chunk == 4 ? 1U : 0U));
  }
}

TEST_CASE("a mask token outside the draft's embedding is refused") {
  const auto draft = std::make_shared<FakeModel>(FakeLanguage(16));
  CHECK_THROWS_AS(ParallelDrafter(draft, 16), IncompatibleModels);
  CHECK_THROWS_AS(ParallelDrafter(draft, -1), IncompatibleModels);
  CHECK_NOTHROW(ParallelDrafter(draft, 15));
}

TEST_CASE("a draft's own tokens behind the target's are never proposed") {
  // The draft's three rows behind the vocabulary have its highest logits, and it says they are
  // tokens.
  class WiderDraft final : public test::FakeModel {
   public:
    WiderDraft() : FakeModel(FakeLanguage(16), Options{.padding = 3}) {
      wider_ = FakeModel::info();
      wider_.num_tokens = 19;
    }
    const ModelInfo& info() const override { return wider_; }

   private:
    ModelInfo wider_;
  };
  Decoder decoder(std::make_unique<ComposedExecutor>(
                      std::make_shared<FakeModel>(FakeLanguage(16)),
                      std::make_shared<AutoregressiveDrafter>(std::make_shared<WiderDraft>())),
                  {.num_speculative_tokens = 3});
  const auto sequence = decoder.add({1, 2, 3}, {.max_new_tokens = 20});
  decoder.run();
  CHECK(test::generated(*sequence) == test::decode_plainly(FakeLanguage(16), {1, 2, 3}, {}, 20));
  CHECK(sequence->counts().accepted == sequence->counts().drafted);
}

TEST_CASE("a draft with fewer tokens drafts on where the target emits one that it does not know") {
  const FakeLanguage language(24), smaller(16);
  const std::vector<Token> plain = test::decode_plainly(language, {20, 2, 23}, {}, 60);
  REQUIRE(std::ranges::any_of(plain, [](Token token) { return token >= 16; }));
  for (const bool parallel : {false, true}) {
    const auto draft =
        std::make_shared<FakeModel>(smaller, FakeModel::Options{.mask_token_id = 15});
    std::shared_ptr<Drafter> drafter = std::make_shared<AutoregressiveDrafter>(draft);
    if (parallel) drafter = std::make_shared<ParallelDrafter>(draft, 15);
    Decoder decoder(
        std::make_unique<ComposedExecutor>(std::make_shared<FakeModel>(language), drafter),
        {.num_speculative_tokens = 3});
    const auto sequence = decoder.add({20, 2, 23}, {.max_new_tokens = 60});
    decoder.run();
    CHECK(test::generated(*sequence) == plain);
    CHECK(sequence->counts().drafted > 60);
  }
}

TEST_CASE("a target that emits one of its padding ids can still be drafted for") {
  // The target's three padding rows have its highest logits: it emits nothing else. The draft has
  // no such rows.
  const FakeLanguage language(16);
  const auto target = std::make_shared<FakeModel>(language, FakeModel::Options{.padding = 3});
  const auto draft = std::make_shared<FakeModel>(language);
  Decoder decoder(
      std::make_unique<ComposedExecutor>(target, std::make_shared<AutoregressiveDrafter>(draft)),
      {.num_speculative_tokens = 3});
  const auto sequence = decoder.add({1, 2, 3}, {.max_new_tokens = 5});
  decoder.run();
  CHECK(test::generated(*sequence) == std::vector<Token>{16, 16, 16, 16, 16});
}

}  // namespace
}  // namespace pard
