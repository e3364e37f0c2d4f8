#include "adaptive_k.h"

#include <algorithm>
#include <chrono>

namespace pard {

namespace {

constexpr int first_samples = 3;  // of every K, the shortest of which counts
constexpr double time_fade = 0.1;
constexpr double trial_fade = 0.5;
constexpr double longest_of_mean = 2.0;         // a round may meet anything on a busy machine
constexpr std::int64_t acceptance_memory = 64;  // rounds
constexpr int shortest_interval = 16, longest_interval = 256;  // rounds between trials

}  // namespace

AdaptiveK::AdaptiveK(int most) : trial_interval_(shortest_interval) {
  for (int k = 0, step = 1; k < most; k += step) {
    rungs_.push_back({k});
    if (k >= 4 && (k & (k - 1)) == 0) step = k / 2;
  }
  rungs_.push_back({most});
  accepted_.resize(static_cast<std::size_t>(most));
  current_ = best_ = rungs_.size() - 1;
}

void AdaptiveK::add_round(std::span<const SequenceRound> rounds, Duration took) {
  const int k = next();
  const bool was_behind = draft_is_behind_;
  draft_is_behind_ = k == 0;
  for (const SequenceRound& round : rounds) {
    // One launched before K was set anew may have more.
    const int told = std::min({round.num_proposals, round.num_accepted + 1, most()});
    for (int i = 0; i < told; ++i) {
      Share& share = accepted_[static_cast<std::size_t>(i)];
      share.num_samples = std::min(share.num_samples + 1, acceptance_memory);
      const double held = round.num_accepted > i ? 1.0 : 0.0;
      share.mean += (held - share.mean) / static_cast<double>(share.num_samples);
    }
  }
  // A sequence near its end gets fewer proposals than the round's K.
  const bool whole = std::all_of(rounds.begin(), rounds.end(), [&](const SequenceRound& round) {
    return !round.error && round.num_proposals == k;
  });
  if (!whole || rounds.empty() || (k > 0 && was_behind)) return;
  add_time(std::chrono::duration<double>(took).count());
  move_on();
}

void AdaptiveK::add_time(double seconds) {
  Rung& rung = rungs_[current_];
  if (++rung.num_samples <= first_samples) {
    rung.seconds = rung.num_samples == 1 ? seconds : std::min(rung.seconds, seconds);
    return;
  }
  const double change = std::min(seconds / rung.seconds, longest_of_mean) - 1.0;
  if (current_ != best_) {
    rung.seconds *= 1.0 + trial_fade * change;
    return;
  }
  for (Rung& each : rungs_) each.seconds *= 1.0 + time_fade * change;
}

double AdaptiveK::speed(const Rung& rung) const {
  double tokens = 1.0, reached = 1.0;
  for (int i = 0; i < rung.k; ++i) {
    reached *= accepted_[static_cast<std::size_t>(i)].mean;
    tokens += reached;
  }
  return tokens / rung.seconds;
}

std::size_t AdaptiveK::fastest_but(std::size_t other) const {
  std::size_t fastest = other == 0 ? 1 : 0;
  for (std::size_t i = fastest + 1; i < rungs_.size(); ++i) {
    if (i != other && speed(rungs_[i]) > speed(rungs_[fastest])) fastest = i;
  }
  return fastest;
}

void AdaptiveK::move_on() {
  // At first every K, from the largest down: it tells the most of the draft.
  if (rungs_[current_].num_samples < first_samples) return;
  const auto untried = std::find_if(rungs_.rbegin(), rungs_.rend(),
                                    [](const Rung& rung) { return rung.num_samples == 0; });
  if (untried != rungs_.rend()) {
    current_ = best_ = static_cast<std::size_t>(rungs_.rend() - untried) - 1;
    return;
  }
  const std::size_t best = fastest_but(rungs_.size());
  if (best != best_) {
    best_ = best;
    trial_interval_ = shortest_interval;
    rounds_to_trial_ = trial_interval_;
  }
  current_ = best_;
  if (--rounds_to_trial_ > 0) return;
  trial_interval_ = std::min(2 * trial_interval_, longest_interval);
  rounds_to_trial_ = trial_interval_;
  current_ = fastest_but(best_);
}

}  // namespace pard
