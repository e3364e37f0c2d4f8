#pragma once

#include "model.h"

namespace pard {

// How a Model behaves where decoding relies on it. Differences are the largest between two logits,
// as a part of the largest logit.
struct ProbeReport {
  double single_rows = 0;    // rows computed together, against the same ones computed alone
  double rewinding = 0;      // rows computed again after others had been in their place
  double rejected_rows = 0;  // a row, with other tokens behind it
  bool same_tokens = true;   // the greedy token was the same throughout
};

struct ProbeLimits {
  double single_rows = 0;
  double rewinding = 0;
  double rejected_rows = 0;
};

// Runs six small forwards on a sequence of its own and releases it. Throws ModelError, naming what
// went wrong, where a difference exceeds its limit or a logit is not finite. A Model whose
// max_length leaves no room is not tried.
ProbeReport probe_model(Model& model, const ProbeLimits& limits);

}  // namespace pard
