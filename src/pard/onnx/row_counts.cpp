#include "row_counts.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace pard {

//   rows        0 ........ 8 9 ....... 15 16 ....... 24
//   forward 1   |---------- unit ----------|
//   forward 2                |------- unit ------------|     where both are, they must agree
//   a count                  |rows|rows|                  until enough rows have been compared
RowCounts::RowCounts(Forward forward, std::int64_t max_length, std::int64_t num_compared)
    : forward_(std::move(forward)), num_compared_(num_compared) {
  if (max_length < begin + most) {
    unit_ = 1;  // no room to try anything: every row by itself
    return;
  }
  expected_ = forward_(0, most);
  const std::vector<Digest> shifted = forward_(begin, most);
  if (!std::equal(expected_.begin() + begin, expected_.end(), shifted.begin())) return;
  unit_ = most;
  expected_.insert(expected_.end(), shifted.begin() + (most - begin), shifted.end());
  padding(1);
}

std::int64_t RowCounts::padding(std::int64_t rows) {
  if (unit_ <= 1) return 0;
  const std::int64_t rest = rows % unit_;
  std::int64_t padded = rest;
  while (padded % unit_ != 0 && !is_like_unit(padded)) ++padded;
  return padded - rest;
}

bool RowCounts::is_like_unit(std::int64_t rows) {
  std::optional<bool>& known = like_unit_[static_cast<std::size_t>(rows)];
  if (known) return *known;
  known = true;
  for (std::int64_t past = begin; *known && past < begin + num_compared_; past += rows) {
    const std::vector<Digest> digests = forward_(past, rows);
    known = std::equal(digests.begin(), digests.end(), expected_.begin() + past);
  }
  return *known;
}

}  // namespace pard
