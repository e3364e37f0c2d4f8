#include "pard/draft.h"

#include <doctest/doctest.h>

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

TEST_CASE("padding may differ between draft and target, vocabularies may not") {
  const ModelInfo target{.name = "target", .vocab_size = 104, .max_length = 8, .num_tokens = 100};
  ModelInfo draft{.name = "draft", .vocab_size = 128, .max_length = 8, .num_tokens = 100};
  CHECK_NOTHROW(check_compatible(target, draft));
  draft.vocab_size = 100;
  CHECK_NOTHROW(check_compatible(target, draft));
  draft.num_tokens.reset();
  CHECK_NOTHROW(check_compatible(target, draft));
  draft.num_tokens = 99;
  CHECK_THROWS_AS(check_compatible(target, draft), IncompatibleModels);
}

TEST_CASE("tokenizers are compared where both are known") {
  ModelInfo target{.name = "target", .vocab_size = 100, .max_length = 8};
  ModelInfo draft = target;
  target.vocabulary_id = "a";
  CHECK_NOTHROW(check_compatible(target, draft));
  draft.vocabulary_id = "b";
  CHECK_THROWS_AS(check_compatible(target, draft), IncompatibleModels);
  draft.vocabulary_id = "a";
  CHECK_NOTHROW(check_compatible(target, draft));
  draft.vocab_size = 105;  // special tokens of its own, which the digest leaves out
  CHECK_NOTHROW(check_compatible(target, draft));
}

TEST_CASE("a draft's own tokens behind the target's are never proposed") {
  class WiderDraft final : public test::FakeModel {
   public:
    WiderDraft() : FakeModel(FakeLanguage(16), Options{.padding = 3}) {
      wider_ = FakeModel::info();
      wider_.num_tokens = 19;
      wider_.vocabulary_id = "a";
    }
    const ModelInfo& info() const override { return wider_; }

   private:
    ModelInfo wider_;
  };
  class Target final : public test::FakeModel {
   public:
    Target() : FakeModel(FakeLanguage(16)) {
      info_with_digest_ = FakeModel::info();
      info_with_digest_.vocabulary_id = "a";
    }
    const ModelInfo& info() const override { return info_with_digest_; }

   private:
    ModelInfo info_with_digest_;
  };
  Decoder decoder(std::make_unique<ComposedExecutor>(
                      std::make_shared<Target>(),
                      std::make_shared<AutoregressiveDrafter>(std::make_shared<WiderDraft>())),
                  {.num_speculative_tokens = 3});
  const auto sequence = decoder.add({1, 2, 3}, {.max_new_tokens = 20});
  decoder.run();
  CHECK(test::generated(*sequence) == test::decode_plainly(FakeLanguage(16), {1, 2, 3}, {}, 20));
  CHECK(sequence->counts().accepted == sequence->counts().drafted);
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
