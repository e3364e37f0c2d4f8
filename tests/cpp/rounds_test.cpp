// The details of a round: what is fed, what is counted, which error and which reason comes first.
#include <doctest/doctest.h>

#include <memory>
#include <stdexcept>
#include <vector>

#include "fake_pair.h"
#include "pard/error.h"

namespace pard {
namespace {

using test::decode_plainly;
using test::FakeLanguage;
using test::FakeModel;
using test::FakePair;
using test::generated;
using test::Manner;
using test::Method;
using test::prompt_of;

// Counts what a Model is fed.
class Counting final : public Model {
 public:
  explicit Counting(std::shared_ptr<Model> model) : model_(std::move(model)) {}
  const ModelInfo& info() const override { return model_->info(); }
  LogitsView forward(std::span<const ForwardItem> batch) override {
    fed.emplace_back();
    for (const ForwardItem& item : batch) fed.back().push_back(item.tokens.size());
    return model_->forward(batch);
  }
  void release(SequenceId sequence) noexcept override { model_->release(sequence); }

  std::vector<std::vector<std::size_t>> fed;

 private:
  std::shared_ptr<Model> model_;
};

using Fed = std::vector<std::vector<std::size_t>>;

struct CountedPair {
  explicit CountedPair(bool parallel, int k, Manner manner = Manner::faithful) {
    const FakeLanguage language(24);
    target = std::make_shared<Counting>(std::make_shared<FakeModel>(language));
    draft = std::make_shared<Counting>(std::make_shared<FakeModel>(
        language, FakeModel::Options{.manner = manner, .mask_token_id = 24, .padding = 1}));
    std::shared_ptr<Drafter> drafter;
    if (parallel) {
      drafter = std::make_shared<ParallelDrafter>(draft, 24, 16);
    } else {
      drafter = std::make_shared<AutoregressiveDrafter>(draft, 16);
    }
    decoder = std::make_unique<Decoder>(std::make_unique<ComposedExecutor>(target, drafter, 16),
                                        DecoderOptions{.num_speculative_tokens = k});
  }
  std::shared_ptr<Counting> target, draft;
  std::unique_ptr<Decoder> decoder;
};

TEST_CASE("no token is fed twice: prefill in chunks, then what is new") {
  CountedPair parallel(true, 4);
  parallel.decoder->add(prompt_of(40), {.max_new_tokens = 16});
  parallel.decoder->run();
  CHECK(parallel.target->fed == Fed{{16}, {16}, {8}, {5}, {5}, {5}});
  // 41 tokens, then 5 new ones a round; 3 masks behind them.
  CHECK(parallel.draft->fed == Fed{{16}, {16}, {9 + 3}, {5 + 3}, {5 + 3}});

  CountedPair autoregressive(false, 3);
  autoregressive.decoder->add(prompt_of(31), {.max_new_tokens = 9});
  autoregressive.decoder->run();
  CHECK(autoregressive.target->fed == Fed{{16}, {15}, {4}, {4}});
  // After a whole round the last proposal has not been run: it comes with the bonus token.
  CHECK(autoregressive.draft->fed == Fed{{16}, {16}, {1}, {1}, {2}, {1}, {1}});

  CountedPair hostile(false, 3, Manner::hostile);
  hostile.decoder->add(prompt_of(4), {.max_new_tokens = 6});
  hostile.decoder->run();
  // One token a round; the last two rounds have room for 2 and 1 proposals.
  CHECK(hostile.draft->fed == Fed{{5}, {1}, {1}, {1}, {1}, {1}, {1}, {1}, {1}});
}

TEST_CASE("a round near the end asks for no more proposals than can be committed") {
  for (const int left : {1, 2, 3, 6}) {
    CountedPair pair(true, 8);
    pair.decoder->add(prompt_of(4), {.max_new_tokens = 1 + left});
    pair.decoder->run();
    CHECK(pair.decoder->counts().drafted == left - 1);
    CHECK(pair.target->fed.back().front() == static_cast<std::size_t>(left));
  }
}

TEST_CASE("a draft proposes up to its last row") {
  const FakeLanguage language(24);
  const auto draft = std::make_shared<FakeModel>(
      language, FakeModel::Options{.mask_token_id = 24, .padding = 1, .max_length = 30});
  Decoder decoder(std::make_unique<ComposedExecutor>(std::make_shared<FakeModel>(language),
                                                     std::make_shared<ParallelDrafter>(draft, 24)),
                  {.num_speculative_tokens = 4});
  const auto sequence = decoder.add(prompt_of(20), {.max_new_tokens = 30});
  decoder.run();
  // n = 21: 4 proposals; 26: 4 (rows up to 30); 31: none.
  CHECK(sequence->counts().drafted_at == std::vector<std::int64_t>{2, 2, 2, 2});
  const auto last = decoder.add(prompt_of(29), {.max_new_tokens = 10});
  decoder.run();
  CHECK(last->counts().drafted_at == std::vector<std::int64_t>{1});  // n = 30: row 30 is the last
}

TEST_CASE("a sequence whose draft failed takes no further part in the draft's round") {
  FakePair pair(Method::autoregressive, Manner::faithful, {.num_speculative_tokens = 4});
  pair.decoder->add(prompt_of(10), {.max_new_tokens = 30});
  pair.decoder->step();
  pair.draft->poisoned_position = 10;
  CHECK_THROWS_AS(pair.decoder->step(), LogitsError);
  CHECK(pair.draft->num_forwards == 1);
}

TEST_CASE("rows before a bad row count, wherever in the round it is") {
  for (int position = 20; position < 30; ++position) {
    FakePair pair(Method::parallel, Manner::faithful, {.num_speculative_tokens = 8});
    const auto sequence = pair.decoder->add(prompt_of(20), {.max_new_tokens = 30});
    pair.target->poisoned_position = position;  // its row chooses the token behind it
    for (int round = 0; round < 12; ++round) {
      try {
        pair.decoder->step();
      } catch (const LogitsError&) {
      }
    }
    CHECK(generated(*sequence) ==
          decode_plainly(pair.language, prompt_of(20), {}, position - 20 + 1));
  }
}

TEST_CASE("of several errors of a round the first is thrown") {
  FakePair pair(Method::plain, Manner::faithful);
  const auto thrower = [](const char* what) {
    return [what](const TokenEvent&) -> bool { throw std::runtime_error(what); };
  };
  pair.decoder->add(prompt_of(3), {}, thrower("first"));
  pair.decoder->add(prompt_of(3), {}, thrower("second"));
  pair.decoder->add(prompt_of(3), {.max_new_tokens = 1});
  CHECK_THROWS_WITH(pair.decoder->step(), "first");
  CHECK(pair.decoder->num_active() == 2);  // the third has finished and is released at once
  CHECK(pair.target->num_caches() == 2);
}

TEST_CASE("EOS comes before stop ids, both before the limit and the observer") {
  const std::vector<Token> all = decode_plainly(FakeLanguage(24), prompt_of(20), {}, 1);
  const auto reason = [&](GenerationParams params, bool go_on = true) {
    FakePair pair(Method::plain, Manner::faithful);
    const auto sequence =
        pair.decoder->add(prompt_of(20), params, [&](const TokenEvent&) { return go_on; });
    pair.decoder->run();
    return sequence->finish_reason();
  };
  CHECK(reason({.max_new_tokens = 1, .eos_token_ids = all, .stop_token_ids = all}) ==
        FinishReason::eos);
  CHECK(reason({.max_new_tokens = 1, .stop_token_ids = all}) == FinishReason::stop);
  CHECK(reason({.max_new_tokens = 1, .eos_token_ids = all}, false) == FinishReason::eos);
  CHECK(reason({.max_new_tokens = 1}, false) == FinishReason::length);
}

TEST_CASE("accepted counts what held, also where the sequence ends inside it") {
  const std::vector<Token> all = decode_plainly(FakeLanguage(24), prompt_of(20), {}, 3);
  FakePair pair(Method::parallel, Manner::faithful, {.num_speculative_tokens = 5});
  int calls = 0;
  const auto sequence =
      pair.decoder->add(prompt_of(20), {}, [&](const TokenEvent&) { return ++calls < 3; });
  pair.decoder->run();
  CHECK(sequence->counts().accepted == 5);
  CHECK(sequence->counts().accepted_at == std::vector<std::int64_t>(5, 1));
  CHECK(sequence->counts().committed == 3);
}

TEST_CASE("a round cannot be started inside a round") {
  FakePair pair(Method::parallel, Manner::faithful, {.max_batch_size = 64});
  int refused = 0;
  const auto sequence =
      pair.decoder->add(prompt_of(5), {.max_new_tokens = 30}, [&](const TokenEvent&) {
        for (int i = 0; i < 8; ++i) pair.decoder->add(prompt_of(3), {.max_new_tokens = 2});
        try {
          pair.decoder->step();
        } catch (const InvalidArgument&) {
          ++refused;
        }
        return true;
      });
  pair.decoder->run();
  CHECK(refused == 30);
  CHECK(generated(*sequence) == decode_plainly(pair.language, prompt_of(5), {}, 30));
}

}  // namespace
}  // namespace pard
