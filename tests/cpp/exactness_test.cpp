// The text is the target's own, whatever the draft, K, batch or schedule.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "fake_pair.h"

namespace pard {
namespace {

using test::decode_plainly;
using test::FakePair;
using test::generated;
using test::Manner;
using test::Method;
using test::prompt_of;

const Method methods[] = {Method::parallel, Method::autoregressive};
const Manner manners[] = {Manner::faithful, Manner::mixed, Manner::random, Manner::hostile};
const int ks[] = {1, 2, 5, 8, 16};
const SamplingParams samplings[] = {
    {},
    {.temperature = 1.0F, .seed = 5},
    {.temperature = 0.7F, .top_k = 9, .top_p = 0.9F, .min_p = 0.02F, .seed = 6},
};

TEST_CASE("one sequence: ids equal plain decoding's") {
  for (const SamplingParams& sampling : samplings) {
    const std::vector<Token> prompt = prompt_of(37);
    FakePair plain(Method::plain, Manner::faithful);
    const auto plain_sequence = plain.decoder->add(prompt, {sampling, 60, {}, {}});
    plain.decoder->run();
    const std::vector<Token> expected = decode_plainly(plain.language, prompt, sampling, 60);
    CHECK(generated(*plain_sequence) == expected);

    for (const Method method : methods) {
      for (const Manner manner : manners) {
        for (const int k : ks) {
          for (const bool on_device : {false, true}) {
            FakePair pair(method, manner, {.num_speculative_tokens = k});
            if (on_device) pair.use_device();
            const auto sequence = pair.decoder->add(prompt, {sampling, 60, {}, {}});
            pair.decoder->run();
            CHECK(generated(*sequence) == expected);
            CHECK((pair.device->num_chosen > 60) == on_device);
          }
        }
      }
    }
  }
}

TEST_CASE(
    "batches of mixed lengths that join and leave: each sequence's ids equal plain decoding's") {
  struct Request {
    int prompt_length;
    int max_new_tokens;
    int joins_at_step;
  };
  const std::vector<Request> requests = {{1, 30, 0}, {40, 7, 0},  {16, 1, 0},  {17, 45, 1},
                                         {3, 20, 3}, {33, 33, 4}, {90, 12, 9}, {2, 50, 9}};
  for (const SamplingParams& sampling : samplings) {
    for (const Method method : methods) {
      for (const Manner manner : manners) {
        for (const int k : ks) {
          FakePair pair(method, manner, {.num_speculative_tokens = k, .max_batch_size = 5});
          std::vector<std::shared_ptr<Sequence>> sequences;
          for (int step = 0; step < 10 || pair.decoder->num_active() > 0; ++step) {
            for (std::size_t i = 0; i < requests.size(); ++i) {
              if (requests[i].joins_at_step != step) continue;
              SamplingParams own = sampling;
              own.seed += i;
              sequences.push_back(pair.decoder->add(prompt_of(requests[i].prompt_length, i),
                                                    {own, requests[i].max_new_tokens, {}, {}}));
            }
            pair.decoder->step();
            for (const auto& sequence : sequences) {
              if (!sequence->finished()) REQUIRE(pair.caches_are_fresh(*sequence));
            }
          }
          for (std::size_t i = 0; i < requests.size(); ++i) {
            SamplingParams own = sampling;
            own.seed += i;
            CHECK(generated(*sequences[i]) ==
                  decode_plainly(pair.language, prompt_of(requests[i].prompt_length, i), own,
                                 requests[i].max_new_tokens));
            CHECK(sequences[i]->finish_reason() == FinishReason::length);
          }
          CHECK(pair.target->num_caches() == 0);
          CHECK(pair.draft->num_caches() == 0);
        }
      }
    }
  }
}

TEST_CASE("EOS, a stop id, a limit or an observer's stop inside an accepted block end it there") {
  const std::vector<Token> prompt = prompt_of(20);
  const std::vector<Token> all =
      decode_plainly(test::FakeLanguage(FakePair::vocab_size), prompt, {}, 40);
  for (const Method method : methods) {
    for (const int k : ks) {
      for (std::size_t end = 1; end <= 20; ++end) {
        const Token last = all[end - 1];
        const auto first_of_kind =
            static_cast<std::size_t>(std::find(all.begin(), all.end(), last) - all.begin()) + 1;
        const auto decode = [&](GenerationParams params, TokenObserver observer = {}) {
          FakePair pair(method, Manner::faithful, {.num_speculative_tokens = k});
          const auto sequence = pair.decoder->add(prompt, std::move(params), std::move(observer));
          pair.decoder->run();
          return sequence;
        };
        const auto check = [&](const Sequence& sequence, std::size_t length, FinishReason reason) {
          CHECK(generated(sequence) ==
                std::vector<Token>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(length)));
          CHECK(sequence.finish_reason() == reason);
          CHECK(sequence.remaining() == 0);
        };
        check(*decode({.eos_token_ids = {last}}), first_of_kind, FinishReason::eos);
        check(*decode({.stop_token_ids = {last}}), first_of_kind, FinishReason::stop);
        check(*decode({.max_new_tokens = static_cast<std::int64_t>(end)}), end,
              FinishReason::length);
        check(*decode(
                  {},
                  [&](const TokenEvent& event) { return event.sequence.generated().size() < end; }),
              end, FinishReason::stop);
      }
    }
  }
}

TEST_CASE("changing K between rounds, down to 0 and back, changes no token") {
  const std::vector<Token> prompt = prompt_of(50);
  for (const Method method : methods) {
    for (const SamplingParams& sampling : samplings) {
      FakePair pair(method, Manner::mixed);
      const auto sequence = pair.decoder->add(prompt, {sampling, 120, {}, {}});
      for (int round = 0; pair.decoder->step(); ++round) {
        const bool plain = round % 30 > 5;  // long enough that the draft has chunks to catch up
        pair.decoder->set_num_speculative_tokens(plain ? 0 : 1 + round % 7);
        CHECK(pair.caches_are_fresh(*sequence));
      }
      CHECK(generated(*sequence) == decode_plainly(pair.language, prompt, sampling, 120));
    }
  }
}

TEST_CASE("a draft with a shorter memory than the target steps aside when it is full") {
  test::FakeLanguage language(FakePair::vocab_size);
  for (const std::int64_t draft_length : {30, 31, 35, 40}) {
    const auto target = std::make_shared<test::FakeModel>(language);
    const auto draft = std::make_shared<test::FakeModel>(
        language,
        test::FakeModel::Options{.mask_token_id = 24, .padding = 1, .max_length = draft_length});
    Decoder decoder(
        std::make_unique<ComposedExecutor>(target, std::make_shared<ParallelDrafter>(draft, 24)),
        {.num_speculative_tokens = 8});
    const auto sequence = decoder.add(prompt_of(20), {.max_new_tokens = 50});
    decoder.run();
    CHECK(generated(*sequence) == decode_plainly(language, prompt_of(20), {}, 50));
  }
}

}  // namespace
}  // namespace pard
