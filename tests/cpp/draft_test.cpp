#include "pard/draft.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "fake_pair.h"
#include "pard/error.h"
#include "pard/vocabulary.h"

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

// A model with logits of some tokens only.
class Trimmed final : public Model {
 public:
  Trimmed(std::shared_ptr<FakeModel> whole, std::vector<Token> head)
      : whole_(std::move(whole)), info_(whole_->info()) {
    info_.head_tokens = std::move(head);
  }

  const ModelInfo& info() const override { return info_; }

  LogitsView forward(std::span<const ForwardItem> batch) override {
    const LogitsView all = whole_->forward(batch);
    const auto count = static_cast<std::size_t>(all.num_rows), width = info_.head_tokens.size();
    rows_.resize(count * width);
    std::vector<float> row(static_cast<std::size_t>(all.vocab_size));
    for (std::size_t i = 0; i < count; ++i) {
      widen(all.row(static_cast<std::int64_t>(i)), row.data());
      for (std::size_t j = 0; j < width; ++j) {
        rows_[i * width + j] = row[static_cast<std::size_t>(info_.head_tokens[j])];
      }
    }
    if (device) device->read(rows_.data(), rows_.data(), rows_.size() * sizeof(float));
    return {rows_.data(),     DType::f32,       all.num_rows,
            info_.row_size(), info_.row_size(), device.get()};
  }

  void release(SequenceId sequence) noexcept override { whole_->release(sequence); }

  std::shared_ptr<test::FakeDevice> device;  // where the rows lie; null: in the host's memory

 private:
  std::shared_ptr<FakeModel> whole_;
  ModelInfo info_;
  std::vector<float> rows_;
};

TEST_CASE("a draft of some tokens proposes what it would of all, where that is one of them") {
  const FakeLanguage language(24);
  std::vector<Token> head;
  for (Token token = 1; token < 24; ++token) {
    if (token % 3 != 0) head.push_back(token);
  }
  for (const float temperature : {0.0F, 0.8F}) {
    const SamplingParams sampling{.temperature = temperature, .top_p = 0.95F, .seed = 7};
    const std::vector<Token> plain = test::decode_plainly(language, {20, 2, 23}, sampling, 90);
    const auto of_head = [&](Token token) { return std::ranges::binary_search(head, token); };
    for (const bool on_device : {false, true}) {
      const auto draft = std::make_shared<Trimmed>(std::make_shared<FakeModel>(language), head);
      if (on_device) draft->device = std::make_shared<test::FakeDevice>();
      Decoder decoder(
          std::make_unique<ComposedExecutor>(std::make_shared<FakeModel>(language),
                                             std::make_shared<AutoregressiveDrafter>(draft)),
          {.num_speculative_tokens = 1});
      const auto sequence = decoder.add({20, 2, 23}, {.sampling = sampling, .max_new_tokens = 90});
      decoder.run();
      CHECK(test::generated(*sequence) == plain);
      // Filters see fewer tokens, so sampling may keep one that the target does not.
      const auto accepted = sequence->counts().accepted;
      CHECK(accepted > 10);
      if (temperature > 0.0F) continue;
      const auto known = std::ranges::count_if(plain, of_head);
      CHECK(accepted <= known);
      CHECK(accepted < sequence->counts().drafted);
    }
  }
}

TEST_CASE("of a trimmed head only tokens that the target has are proposed") {
  ModelInfo target{.name = "target", .vocab_size = 16, .max_length = 8};
  ModelInfo draft{.name = "draft", .vocab_size = 24, .max_length = 8};
  draft.head_tokens = {2, 5, 15, 16, 20};
  CHECK(num_proposable(target, draft) == 3);
}

TEST_CASE("a trimmed model is no target, and its head has to make sense") {
  const auto trimmed = [](std::vector<Token> head) {
    return std::make_shared<Trimmed>(std::make_shared<FakeModel>(FakeLanguage(16)),
                                     std::move(head));
  };
  CHECK_THROWS_AS(ComposedExecutor(trimmed({1, 2}), nullptr), IncompatibleModels);
  for (const std::vector<Token>& head : {std::vector<Token>{2, 2}, {3, 1}, {-1, 4}, {4, 16}}) {
    CHECK_THROWS_AS(AutoregressiveDrafter(trimmed(head)), ModelError);
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
