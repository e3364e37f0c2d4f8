#pragma once

#include <span>

#include "types.h"

namespace pard {

// What verification found: so many proposals hold, and this token follows them: a correction where
// a proposal failed, a bonus where all held.
struct Verdict {
  int num_accepted = 0;  // 0..K
  Token next_token = 0;
};

// Compares K proposals with the tokens the target chooses at its K + 1 rows. A proposal holds while
// it equals the choice; the first choice that differs is the correction. `target_choice(i)` is
// called for rows 0, 1, ... up to the one that ends the round, and for no row behind it.
template <typename TargetChoice>
Verdict verify(std::span<const Token> proposals, TargetChoice&& target_choice) {
  int num_accepted = 0;
  for (const Token proposal : proposals) {
    const Token choice = target_choice(num_accepted);
    if (choice != proposal) return {num_accepted, choice};
    ++num_accepted;
  }
  return {num_accepted, target_choice(num_accepted)};
}

}  // namespace pard
