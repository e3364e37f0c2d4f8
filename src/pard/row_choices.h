#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "logits_device.h"

namespace pard {

// The tokens chosen from the rows of one forward. A row in the host's memory is read once its token
// is asked for, so that rows behind a rejection cost nothing; from rows on a device all tokens are
// chosen there at once.
class RowChoices {
 public:
  // Forgets what was requested before.
  void clear() { requests_.clear(); }

  // Says how the next row's token is chosen. `sampling` is borrowed.
  void request(const SamplingParams& sampling, std::int64_t position) {
    requests_.push_back({&sampling, position});
  }

  // Takes the rows, one for every request, borrowed.
  void take(const LogitsView& rows) {
    rows_ = rows;
    if (!chosen_on_device()) return;
    tokens_.resize(requests_.size());
    rows_.device->choose(rows_, requests_, tokens_);
  }

  // Throws as choose() does.
  Token at(std::size_t row) const {
    if (chosen_on_device() && tokens_[row]) return *tokens_[row];
    const RowRequest& request = requests_[row];  // and where there is none, it says why
    return choose(rows_.row(static_cast<std::int64_t>(row)), *request.sampling, request.position);
  }

 private:
  // A device chooses from rows of all tokens only.
  bool chosen_on_device() const { return rows_.device != nullptr && rows_.ids == nullptr; }

  std::vector<RowRequest> requests_;
  LogitsView rows_;
  std::vector<std::optional<Token>> tokens_;
};

}  // namespace pard
