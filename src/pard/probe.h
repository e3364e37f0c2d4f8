#pragma once

#include <cstdint>

#include "model.h"

namespace pard {

// How a Model behaves where decoding relies on it. Differences are the largest between two logits,
// as a part of the largest logit; 0: the same bits.
struct ProbeReport {
  double row_counts = 0;      // a row in forwards of 1, 2, .. rows, against a longer forward's
  double rewinding = 0;       // rows computed again after others had been in their place
  double rejected_rows = 0;   // a row, with other tokens behind it
  bool same_tokens = true;    // the greedy token was the same throughout
  std::int64_t max_rows = 0;  // forwards of 1 to so many rows were compared
  double rounding = 0;  // the most that the model's rounding explains: the limit of row_counts
};

struct ProbeLimits {
  double row_counts = 0;
  double rewinding = 0;
  double rejected_rows = 0;
};

// Runs `max_rows` + 5 small forwards on a sequence of its own and releases it. `max_rows`: 0 leaves
// numbers of rows alone; otherwise at least 2 are tried. Throws ModelError, naming what went wrong,
// where a difference exceeds its limit, and LogitsError where a logit is not finite. A Model whose
// max_length leaves no room for so many is tried with fewer.
ProbeReport probe_model(Model& model, const ProbeLimits& limits, std::int64_t max_rows = 2);

}  // namespace pard
