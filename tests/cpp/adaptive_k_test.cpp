#include "pard/adaptive_k.h"

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

#include "fake_pair.h"

namespace pard {
namespace {

// A pair in numbers: a proposal is accepted with this chance, a forward takes this long.
struct Pair {
  double accepted = 0.8;
  double plain = 1.0;    // of the target, for one row
  double per_row = 0.1;  // of the target, for one row more
  double draft = 0.3;    // for all proposals

  double seconds(int k) const { return plain + k * per_row + (k > 0 ? draft : 0.0); }
  double tokens(int k) const {
    double sum = 1.0;
    for (int i = 1; i <= k; ++i) sum += std::pow(accepted, i);
    return sum;
  }
  double speed(int k) const { return tokens(k) / seconds(k); }
  double best_speed(int most) const {
    double best = 0.0;
    for (int k = 0; k <= most; ++k) best = std::max(best, speed(k));
    return best;
  }
};

struct World {
  AdaptiveK adaptive{8};
  std::mt19937 random{7};
  double noise = 0.05;
  std::vector<int> ks;

  // Tokens per second over some rounds.
  double run(const Pair& pair, int num_rounds) {
    std::uniform_real_distribution<double> uniform(0.0, 1.0);
    double tokens = 0.0, seconds = 0.0;
    for (int i = 0; i < num_rounds; ++i) {
      const int k = adaptive.next();
      ks.push_back(k);
      SequenceRound round;
      round.num_proposals = k;
      while (round.num_accepted < k && uniform(random) < pair.accepted) ++round.num_accepted;
      double took = pair.seconds(k) * (1.0 + noise * uniform(random));
      if (uniform(random) < 0.02) took *= 5.0;  // something else had the machine
      tokens += round.num_accepted + 1;
      seconds += pair.seconds(k);
      adaptive.add_round({&round, 1}, std::chrono::duration_cast<Duration>(
                                          std::chrono::duration<double, std::milli>(took)));
    }
    return tokens / seconds;
  }
};

TEST_CASE("K comes to be the fastest, whatever the pair") {
  for (const double accepted : {0.0, 0.2, 0.5, 0.8, 0.95, 1.0}) {
    for (const double per_row : {0.02, 0.1, 0.4, 1.0}) {
      for (const double draft : {0.05, 0.3, 2.0}) {
        const Pair pair{accepted, 1.0, per_row, draft};
        World world;
        world.run(pair, 400);
        CAPTURE(accepted);
        CAPTURE(per_row);
        CAPTURE(draft);
        CHECK(world.run(pair, 2000) > 0.93 * pair.best_speed(8));
      }
    }
  }
}

TEST_CASE("a useless draft costs next to nothing") {
  const Pair pair{.accepted = 0.0, .per_row = 0.5};
  World world;
  CHECK(world.run(pair, 100) > 0.6 * pair.speed(0));  // every K has been tried
  CHECK(world.run(pair, 2000) > 0.98 * pair.speed(0));
}

TEST_CASE("K follows a pair that changes") {
  const Pair well{.accepted = 0.95}, badly{.accepted = 0.05, .per_row = 0.3};
  World world;
  world.run(well, 500);
  CHECK(world.adaptive.next() >= 6);
  world.run(badly, 800);
  CHECK(world.run(badly, 1000) > 0.9 * badly.speed(0));
  world.run(well, 3000);
  CHECK(world.run(well, 1000) > 0.9 * well.best_speed(8));
}

TEST_CASE("a round of more proposals than there may be is taken in as far as it goes") {
  AdaptiveK adaptive(2);
  SequenceRound round;
  round.num_proposals = round.num_accepted = 8;
  for (int i = 0; i < 20; ++i) adaptive.add_round({&round, 1}, Duration(1000));
  CHECK(adaptive.next() == 2);  // none of them was a round of two
}

TEST_CASE("the text does not depend on it, and it takes what the decoder allows") {
  using test::FakePair;
  for (const test::Manner manner : {test::Manner::faithful, test::Manner::hostile}) {
    FakePair pair(test::Method::parallel, manner,
                  {.num_speculative_tokens = 5, .max_batch_size = 2, .adaptive = true});
    std::vector<std::shared_ptr<Sequence>> sequences;
    for (std::size_t i = 0; i < 4; ++i) {
      sequences.push_back(pair.decoder->add(test::prompt_of(20, i), {.max_new_tokens = 150}));
    }
    pair.decoder->run();
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(test::generated(*sequences[i]) ==
            test::decode_plainly(pair.language, test::prompt_of(20, i), {}, 150));
    }
    CHECK(pair.decoder->counts().drafted_at.size() == 5);
    CHECK(pair.decoder->counts().drafted_at[4] < pair.decoder->counts().drafted_at[0]);
  }
}

}  // namespace
}  // namespace pard
