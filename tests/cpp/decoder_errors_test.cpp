#include <doctest/doctest.h>

#include <stdexcept>
#include <vector>

#include "fake_pair.h"
#include "pard/error.h"

namespace pard {
namespace {

using test::decode_plainly;
using test::FakePair;
using test::generated;
using test::Manner;
using test::Method;
using test::prompt_of;

TEST_CASE(
    "a model that throws in mid-round leaves every sequence at its last committed token, and "
    "usable") {
  for (const Method method : {Method::parallel, Method::autoregressive}) {
    for (const bool in_draft : {false, true}) {
      for (int forwards = 0; forwards < 8; ++forwards) {
        FakePair pair(method, Manner::mixed, {.num_speculative_tokens = 3});
        const auto first = pair.decoder->add(prompt_of(40), {.max_new_tokens = 30});
        const auto second = pair.decoder->add(prompt_of(5, 1), {.max_new_tokens = 30});
        (in_draft ? pair.draft : pair.target)->forwards_until_failure = forwards;
        bool more = true;
        int errors = 0;
        while (more) {
          const std::vector<Token> before = generated(*first);
          try {
            more = pair.decoder->step();
          } catch (const ModelError& error) {
            ++errors;
            CHECK(error.detail().actual == "the device fell off the bus");
            CHECK(generated(*first) == before);
          }
          if (!first->finished()) CHECK(pair.caches_are_fresh(*first));
          if (!second->finished()) CHECK(pair.caches_are_fresh(*second));
        }
        CHECK(errors == 1);
        CHECK(generated(*first) == decode_plainly(pair.language, prompt_of(40), {}, 30));
        CHECK(generated(*second) == decode_plainly(pair.language, prompt_of(5, 1), {}, 30));
      }
    }
  }
}

TEST_CASE("a device that fails to choose leaves every sequence at its last committed token") {
  for (const Method method : {Method::plain, Method::parallel, Method::autoregressive}) {
    for (int choices = 0; choices < 8; ++choices) {
      FakePair pair(method, Manner::mixed);
      pair.use_device();
      pair.device->choices_until_failure = choices;
      const auto sequence = pair.decoder->add(prompt_of(40), {.max_new_tokens = 30});
      int errors = 0;
      while (!sequence->finished()) {
        try {
          pair.decoder->step();
        } catch (const ModelError&) {
          ++errors;
        }
        if (!sequence->finished()) CHECK(pair.caches_are_fresh(*sequence));
      }
      CHECK(errors == 1);
      CHECK(generated(*sequence) == decode_plainly(pair.language, prompt_of(40), {}, 30));
    }
  }
}

TEST_CASE(
    "a row with no choice ends one sequence's progress where plain decoding's ends; others go on") {
  const Method methods[] = {Method::plain, Method::parallel, Method::autoregressive};
  for (int i = 0; i < 6; ++i) {
    FakePair pair(methods[i / 2], Manner::faithful);
    if (i % 2 == 1) pair.use_device();
    const auto sick = pair.decoder->add(prompt_of(20), {.max_new_tokens = 30});
    const auto well = pair.decoder->add(prompt_of(3, 1), {.max_new_tokens = 15});
    pair.target->poisoned_position = 27;  // its row would have chosen the token at 28
    int errors = 0;
    while (!well->finished() || errors == 0) {
      try {
        pair.decoder->step();
      } catch (const LogitsError&) {
        ++errors;
      }
    }
    CHECK(generated(*sick) == decode_plainly(pair.language, prompt_of(20), {}, 8));
    CHECK(generated(*well) == decode_plainly(pair.language, prompt_of(3, 1), {}, 15));
    CHECK_THROWS_AS(pair.decoder->step(), LogitsError);

    pair.target->poisoned_position.reset();
    pair.decoder->run();
    CHECK(generated(*sick) == decode_plainly(pair.language, prompt_of(20), {}, 30));
  }
}

TEST_CASE("a bad row of the draft is an error too: nothing degrades silently") {
  const Method methods[] = {Method::parallel, Method::autoregressive};
  for (int i = 0; i < 4; ++i) {
    FakePair pair(methods[i / 2], Manner::faithful, {.num_speculative_tokens = 4});
    if (i % 2 == 1) pair.use_device();
    const auto sick = pair.decoder->add(prompt_of(20), {.max_new_tokens = 30});
    const auto well = pair.decoder->add(prompt_of(3, 1), {.max_new_tokens = 10});
    pair.draft->poisoned_position = 26;
    bool threw = false;
    while (!well->finished() || !threw) {
      try {
        pair.decoder->step();
      } catch (const LogitsError&) {
        threw = true;
      }
    }
    CHECK_FALSE(sick->finished());
    pair.draft->poisoned_position.reset();
    pair.decoder->run();
    CHECK(generated(*sick) == decode_plainly(pair.language, prompt_of(20), {}, 30));
  }
}

TEST_CASE("an observer that throws leaves its sequence behind the token it saw, and usable") {
  for (const Method method : {Method::parallel, Method::autoregressive}) {
    FakePair pair(method, Manner::faithful, {.num_speculative_tokens = 5});
    int calls = 0;
    const auto sequence =
        pair.decoder->add(prompt_of(20), {.max_new_tokens = 30}, [&](const TokenEvent&) {
          if (++calls == 4) throw std::runtime_error("the client hung up");
          return true;
        });
    const auto other = pair.decoder->add(prompt_of(6, 2), {.max_new_tokens = 30});
    pair.decoder->step();
    pair.decoder->step();
    CHECK_THROWS_WITH(pair.decoder->step(), "the client hung up");
    CHECK(sequence->generated().size() == 4);
    CHECK(pair.caches_are_fresh(*sequence));
    pair.decoder->run();
    CHECK(generated(*sequence) == decode_plainly(pair.language, prompt_of(20), {}, 30));
    CHECK(generated(*other) == decode_plainly(pair.language, prompt_of(6, 2), {}, 30));
  }
}

TEST_CASE("a model that runs into its max_length ends its sequences with 'length'") {
  for (const int prompt_length : {1, 30, 62, 63}) {
    FakePair pair(Method::parallel, Manner::mixed, {}, 64);
    const auto sequence = pair.decoder->add(prompt_of(prompt_length), {.max_new_tokens = 1000});
    pair.decoder->run();
    CHECK(sequence->length() == 64);
    CHECK(sequence->finish_reason() == FinishReason::length);
    CHECK(generated(*sequence) ==
          decode_plainly(pair.language, prompt_of(prompt_length), {}, 64 - prompt_length));
    CHECK_THROWS_AS(pair.decoder->add(prompt_of(64)), InvalidArgument);
  }
}

TEST_CASE("requests that cannot be decoded are refused before any work") {
  FakePair pair(Method::parallel, Manner::faithful);
  CHECK_THROWS_AS(pair.decoder->add({}), InvalidArgument);
  CHECK_THROWS_AS(pair.decoder->add({1, -1}), InvalidArgument);
  CHECK_THROWS_AS(pair.decoder->add({1, FakePair::vocab_size}), InvalidArgument);
  CHECK_THROWS_AS(pair.decoder->add({1}, {.eos_token_ids = {-1}}), InvalidArgument);
  CHECK_THROWS_AS(pair.decoder->add({1}, {.stop_token_ids = {1 << 20}}), InvalidArgument);
  CHECK_THROWS_AS(pair.decoder->add({1}, {.sampling = {.top_p = 0.0F}}), InvalidArgument);
  CHECK(pair.decoder->num_waiting() == 0);
  CHECK(pair.target->num_forwards == 0);
  CHECK_FALSE(pair.decoder->step());
}

TEST_CASE("options out of range are refused") {
  const auto decoder_with = [](Method method, DecoderOptions options) {
    FakePair(method, Manner::faithful, options);
  };
  CHECK_THROWS_AS(decoder_with(Method::parallel, {.num_speculative_tokens = -1}), InvalidArgument);
  CHECK_THROWS_AS(decoder_with(Method::parallel, {.num_speculative_tokens = 65}), InvalidArgument);
  CHECK_THROWS_AS(decoder_with(Method::plain, {.num_speculative_tokens = 1}), InvalidArgument);
  CHECK_THROWS_AS(decoder_with(Method::plain, {.max_batch_size = 0}), InvalidArgument);
  CHECK_NOTHROW(decoder_with(Method::parallel, {.num_speculative_tokens = 64}));
  CHECK_NOTHROW(decoder_with(Method::plain, {.num_speculative_tokens = 0}));
  CHECK(FakePair(Method::parallel, Manner::faithful).decoder->num_speculative_tokens() == 8);
  CHECK(FakePair(Method::plain, Manner::faithful).decoder->num_speculative_tokens() == 0);
}

TEST_CASE("one Model cannot be both target and draft") {
  const auto model = std::make_shared<test::FakeModel>(test::FakeLanguage(16));
  CHECK_THROWS_AS(ComposedExecutor(model, std::make_shared<AutoregressiveDrafter>(model)),
                  InvalidArgument);
}

}  // namespace
}  // namespace pard
