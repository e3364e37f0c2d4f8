#include "pard/decoder.h"

#include <doctest/doctest.h>

#include <thread>
#include <vector>

#include "fake_pair.h"

namespace pard {
namespace {

using test::FakePair;
using test::generated;
using test::Manner;
using test::Method;
using test::prompt_of;

TEST_CASE(
    "the observer sees every committed token once, in order, with the row it was chosen from") {
  FakePair pair(Method::parallel, Manner::mixed, {.num_speculative_tokens = 5});
  std::vector<Token> seen;
  std::int64_t from_draft = 0;
  const auto sequence =
      pair.decoder->add(prompt_of(9), {.max_new_tokens = 40}, [&](const TokenEvent& event) {
        CHECK(event.token == event.sequence.tokens().back());
        seen.push_back(event.token);
        from_draft += event.from_draft ? 1 : 0;
        for (Token other = 0; other < FakePair::vocab_size; ++other) {
          CHECK(log_probability(event.row, event.token) >= log_probability(event.row, other));
        }
        return true;
      });
  pair.decoder->run();
  CHECK(seen == generated(*sequence));
  CHECK(from_draft == sequence->counts().accepted);
}

TEST_CASE("counts add up") {
  FakePair pair(Method::parallel, Manner::mixed, {.num_speculative_tokens = 5});
  const auto first = pair.decoder->add(prompt_of(9), {.max_new_tokens = 40});
  const auto second = pair.decoder->add(prompt_of(30, 1), {.max_new_tokens = 25});
  pair.decoder->run();
  const RoundCounts& total = pair.decoder->counts();
  CHECK(total.committed == 65);
  CHECK(total.rounds == first->counts().rounds + second->counts().rounds);
  CHECK(total.committed == total.accepted + total.rounds);  // no stop cut a block
  std::int64_t drafted = 0;
  std::int64_t accepted = 0;
  for (std::size_t i = 0; i < total.drafted_at.size(); ++i) {
    CHECK(total.accepted_at[i] <= total.drafted_at[i]);
    drafted += total.drafted_at[i];
    accepted += total.accepted_at[i];
  }
  CHECK(drafted == total.drafted);
  CHECK(accepted == total.accepted);
  CHECK(total.mean_tokens_per_round() > 1.5);
  CHECK(pair.decoder->times().wall >= pair.decoder->times().draft + pair.decoder->times().target);
}

TEST_CASE("no more sequences run at a time than max_batch_size") {
  FakePair pair(Method::plain, Manner::faithful, {.max_batch_size = 2});
  for (int i = 0; i < 5; ++i) pair.decoder->add(prompt_of(3, 1), {.max_new_tokens = 2});
  CHECK(pair.decoder->num_waiting() == 5);
  pair.decoder->step();
  CHECK(pair.decoder->num_active() == 2);
  CHECK(pair.decoder->num_waiting() == 3);
  pair.decoder->run();
  CHECK(pair.decoder->num_active() == 0);
  CHECK(pair.decoder->num_waiting() == 0);
}

TEST_CASE(
    "cancelling ends a sequence before its next round, waiting or active, from another thread "
    "too") {
  FakePair pair(Method::parallel, Manner::faithful, {.max_batch_size = 2});
  const auto stays = pair.decoder->add(prompt_of(3), {.max_new_tokens = 30});
  const auto active = pair.decoder->add(prompt_of(4), {.max_new_tokens = 1000000});
  const auto waiting = pair.decoder->add(prompt_of(5), {.max_new_tokens = 30});
  waiting->cancel();
  pair.decoder->step();
  std::thread([&] { active->cancel(); }).join();
  std::thread late([&] { stays->cancel(); });  // whenever it gets there
  pair.decoder->run();
  late.join();
  CHECK(active->finish_reason() == FinishReason::cancelled);
  CHECK(waiting->finish_reason() == FinishReason::cancelled);
  CHECK(waiting->generated().empty());
  CHECK(pair.target->num_caches() == 0);
}

TEST_CASE("decoders in two threads do not meet") {
  const auto decode = [](std::vector<Token>& ids) {
    FakePair pair(Method::parallel, Manner::mixed, {.num_speculative_tokens = 4});
    const auto sequence = pair.decoder->add(
        prompt_of(12),
        {.sampling = {.temperature = 1.0F, .top_p = 0.9F, .seed = 8}, .max_new_tokens = 200});
    pair.decoder->run();
    ids = generated(*sequence);
  };
  std::vector<Token> first;
  std::vector<Token> second;
  std::thread other([&] { decode(first); });
  decode(second);
  other.join();
  CHECK(first == second);
}

TEST_CASE("a decoder that goes away releases what its sequences held") {
  std::shared_ptr<test::FakeModel> target;
  {
    FakePair pair(Method::plain, Manner::faithful);
    target = pair.target;
    pair.decoder->add(prompt_of(3), {});
    pair.decoder->step();
    CHECK(target->num_caches() == 1);
  }
  CHECK(target->num_caches() == 0);
}

}  // namespace
}  // namespace pard
