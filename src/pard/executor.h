#pragma once

#include <cstdint>
#include <exception>
#include <span>

#include "logits.h"
#include "model.h"
#include "sequence.h"
#include "stats.h"
#include "types.h"

namespace pard {

// What one round yields for one sequence.
struct SequenceRound {
  int num_proposals =
      0;  // K for this sequence: 0 in its prefill, fewer than asked for near its end
  int num_accepted = 0;

  // The accepted proposals and the correction or bonus token; empty after a prefill chunk or an
  // error.
  std::span<const Token> tokens;

  // The target's rows `tokens` were chosen from; no data where an executor keeps them on its
  // device.
  LogitsView rows;

  // Why nothing could be chosen for this sequence, whose state is as before the round.
  std::exception_ptr error;
};

// Runs rounds on one device and keeps the caches. Between rounds the target has cached n - 1 of a
// sequence's n tokens (fewer only during its prefill and after an error, which the next rounds make
// up for).
class RoundExecutor {
 public:
  virtual ~RoundExecutor() = default;

  virtual const ModelInfo& target_info() const = 0;

  // False: every round is a plain one, whatever num_speculative_tokens says.
  virtual bool can_draft() const = 0;

  // Starts a round over `batch`, none of it finished. Throws what a Model throws; every
  // sequence is then as it was, and caches may have filled further.
  virtual void launch(std::span<Sequence* const> batch, int num_speculative_tokens) = 0;

  // The launched round's yield, in the batch's order, borrowed until the next launch.
  virtual std::span<const SequenceRound> collect() = 0;

  // Called once a round's tokens are committed, be it all of them or fewer: caches keep what covers
  // them.
  virtual void keep(const Sequence& sequence) = 0;

  virtual void release(SequenceId sequence) noexcept = 0;

  // Throws std::logic_error where a cached length contradicts the sequence.
  virtual void check_integrity(const Sequence& sequence) const = 0;

  // Draft and target time so far; wall is the Decoder's.
  virtual RoundTimes times() const = 0;
};

}  // namespace pard
