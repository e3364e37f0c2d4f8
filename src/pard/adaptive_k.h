#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "executor.h"
#include "stats.h"

namespace pard {

// Chooses K round by round: the one with the most tokens per second, by what rounds yielded and
// took of late. 0 is among them, so that a draft that knows nothing costs next to nothing.
//
//   speed(K) = (1 + a_1 + a_1 a_2 + .. + a_1 .. a_K) / time(K)
//
// a_i is the share of the rounds with a proposal i, all those before it accepted, in which it was
// accepted too: rounds with more proposals tell it as well. Times are measured. What slows the
// rounds of one K, a longer context or a larger batch, is taken to slow those of all alike; the
// second best is tried now and then, the more rarely the longer nothing changes.
class AdaptiveK {
 public:
  // K is 0, 1, 2, 3, 4, 6, 8, 12, 16, .. or `most`, which is at least 1.
  explicit AdaptiveK(int most);

  int most() const { return rungs_.back().k; }
  int next() const { return rungs_[current_].k; }  // for the next round

  // A round of K = next(). Those that hold a prefill tell nothing: leave them out.
  void add_round(std::span<const SequenceRound> rounds, Duration took);

 private:
  struct Rung {
    int k = 0;
    double seconds = 0.0;
    int num_samples = 0;
  };
  struct Share {
    double mean = 1.0;
    std::int64_t num_samples = 0;
  };

  double speed(const Rung& rung) const;
  std::size_t fastest_but(std::size_t other) const;
  void add_time(double seconds);
  void move_on();

  std::vector<Rung> rungs_;
  std::vector<Share> accepted_;  // [i]: a_(i + 1)
  std::size_t current_;
  std::size_t best_;
  bool draft_is_behind_ = true;  // its next forward has more to catch up than a round's tokens
  int rounds_to_trial_ = 0;
  int trial_interval_;
};

}  // namespace pard
