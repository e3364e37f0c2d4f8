#include "stats.h"

namespace pard {

void RoundCounts::add_round(int num_proposals, int num_accepted, std::int64_t num_committed) {
  rounds += 1;
  committed += num_committed;
  drafted += num_proposals;
  accepted += num_accepted;
  const auto proposals = static_cast<std::size_t>(num_proposals);
  if (drafted_at.size() < proposals) {
    drafted_at.resize(proposals);
    accepted_at.resize(proposals);
  }
  for (std::size_t i = 0; i < proposals; ++i) drafted_at[i] += 1;
  for (std::size_t i = 0; i < static_cast<std::size_t>(num_accepted); ++i) accepted_at[i] += 1;
}

}  // namespace pard
