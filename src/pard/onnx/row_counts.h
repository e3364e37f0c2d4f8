#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace pard {

// How many rows a forward must have so that each of them gets the bits it gets in any other.
//
// Kernels take rows in tiles, and may compute what is left over (or a row that comes alone) by
// other code, which rounds differently. Nothing here knows which kernel does what: a count of rows
// is tried when it is first asked for, against forwards of `unit` rows, and padded where it
// differs.
class RowCounts {
 public:
  using Digest = std::uint64_t;

  // Computes rows [past, past + rows) of one sequence, whose earlier rows are there, and returns a
  // digest of every bit that the graph makes of each: keys, values and logits.
  using Forward = std::function<std::vector<Digest>(std::int64_t past, std::int64_t rows)>;

  RowCounts() = default;  // nothing was tried: not exact, no padding

  // Two forwards, and more of single rows. `max_length`: the most rows of a sequence.
  // `num_compared`: rows, at least, that a count is judged by.
  RowCounts(Forward forward, std::int64_t max_length, std::int64_t num_compared);

  // False where a row's bits depend on its place even in forwards of one size: no padding helps.
  bool exact() const { return unit_ > 0; }

  // Every forward of so many rows is as good as another; longer ones end as shorter ones do, which
  // is what padding() supposes and its caller checks.
  std::int64_t unit() const { return unit_; }

  // The rows to add to so many. May run forwards.
  std::int64_t padding(std::int64_t rows);

 private:
  static constexpr std::int64_t most = 16;
  static constexpr std::int64_t begin = 9;  // of what is tried: odd, so that places in tiles differ

  bool is_like_unit(std::int64_t rows);

  Forward forward_;
  std::int64_t num_compared_ = 0;
  std::int64_t unit_ = 0;
  std::vector<Digest> expected_;  // of rows 0 and on
  std::array<std::optional<bool>, most> like_unit_{};
};

}  // namespace pard
