#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "logits_device.h"

namespace pard {

// The tokens chosen from the rows of one forward. A row in the host's memory is read once its token
// is asked for, so that rows behind a rejection cost nothing; rows on a device are read all at
// once.
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
    if (rows_.device == nullptr) return;
    tokens_.resize(requests_.size());
    rows_.device->choose(rows_, requests_, tokens_);
  }

  // Throws as choose() does.
  Token at(std::size_t row) const {
    if (rows_.device != nullptr && tokens_[row]) return *tokens_[row];
    const RowRequest& request = requests_[row];  // and where there is none, it says why
    return choose(rows_.row(static_cast<std::int64_t>(row)), *request.sampling, request.position);
  }

 private:
  std::vector<RowRequest> requests_;
  LogitsView rows_;
  std::vector<std::optional<Token>> tokens_;
};

}  // namespace pard
