#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace pard {

using Duration = std::chrono::nanoseconds;

// What rounds proposed and what came of it. num_accepted counts draft tokens only: a round commits
// num_accepted + 1 tokens, unless the sequence ends inside them.
struct RoundCounts {
  std::int64_t rounds = 0;  // rounds of a sequence that yielded tokens; a prefill chunk yields none
  std::int64_t committed = 0;  // tokens published, corrections and bonus tokens included
  std::int64_t drafted = 0;    // proposals verified
  std::int64_t accepted = 0;   // of them, proposals that held

  // [i]: rounds that verified at least i + 1 proposals, and those in which the first i + 1 held.
  std::vector<std::int64_t> drafted_at;
  std::vector<std::int64_t> accepted_at;

  void add_round(int num_proposals, int num_accepted, std::int64_t num_committed);

  double mean_tokens_per_round() const {
    return rounds == 0 ? 0.0 : static_cast<double>(committed) / static_cast<double>(rounds);
  }
};

// Where the time of rounds went. Draft and target include choosing from their rows; wall is the
// whole of step().
struct RoundTimes {
  Duration draft{};
  Duration target{};
  Duration wall{};
};

}  // namespace pard
