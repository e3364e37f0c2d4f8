// Which numbers of rows are padded, on kernels made up for it: a row's digest is its place, and who
// computed it.
#include "pard/onnx/row_counts.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace pard {
namespace {

// Which code computes row `index` of a forward of so many.
using Kernel = std::uint64_t (*)(std::int64_t index, std::int64_t rows);

RowCounts counts_of(Kernel kernel, int* num_forwards = nullptr, std::int64_t max_length = 100,
                    std::int64_t num_compared = 8) {
  const auto forward = [=](std::int64_t past, std::int64_t rows) {
    if (num_forwards != nullptr) ++*num_forwards;
    CHECK(past + rows <= max_length);
    std::vector<RowCounts::Digest> digests;
    for (std::int64_t i = 0; i < rows; ++i) {
      digests.push_back(static_cast<std::uint64_t>(past + i) * 100 + kernel(i, rows));
    }
    return digests;
  };
  return {forward, max_length, num_compared};
}

std::vector<std::int64_t> padded(RowCounts counts, std::int64_t most = 20) {
  std::vector<std::int64_t> result;
  for (std::int64_t rows = 1; rows <= most; ++rows) {
    if (counts.padding(rows) > 0) result.push_back(rows + counts.padding(rows));
  }
  return result;
}

TEST_CASE("row counts: kernels that compute all rows alike pad nothing") {
  const RowCounts counts = counts_of([](auto, auto) { return std::uint64_t{1}; });
  CHECK(counts.exact());
  CHECK(padded(counts).empty());
}

TEST_CASE("row counts: a single row's kernel is left alone by padding") {
  const RowCounts counts = counts_of([](auto, auto rows) { return std::uint64_t{rows == 1}; });
  CHECK(counts.exact());
  CHECK(padded(counts) == std::vector<std::int64_t>{2, 18});
}

TEST_CASE("row counts: odd numbers of rows, whose last another kernel takes, become even") {
  const RowCounts counts = counts_of(
      [](auto index, auto rows) { return std::uint64_t{index == rows - 1 && rows % 2 == 1}; });
  CHECK(counts.exact());
  CHECK(padded(counts) == std::vector<std::int64_t>{2, 4, 6, 8, 10, 12, 14, 16, 18, 20});
}

TEST_CASE("row counts: what is left over of tiles of eight is filled up") {
  const RowCounts counts =
      counts_of([](auto index, auto rows) { return std::uint64_t{index >= rows - rows % 8}; });
  CHECK(counts.exact());
  CHECK(padded(counts, 9) == std::vector<std::int64_t>{8, 8, 8, 8, 8, 8, 8, 16});
}

TEST_CASE("row counts: where the place in a forward matters nothing is padded, or exact") {
  const RowCounts by_place = counts_of([](auto index, auto) { return std::uint64_t(index); });
  CHECK_FALSE(by_place.exact());
  CHECK(padded(by_place).empty());
  const RowCounts tiles_of_three =
      counts_of([](auto index, auto rows) { return std::uint64_t{index >= rows - rows % 3}; });
  CHECK_FALSE(tiles_of_three.exact());
  CHECK_FALSE(RowCounts().exact());
  CHECK(padded(RowCounts()).empty());
}

TEST_CASE("row counts: a number of rows is tried once, when it is asked for") {
  int num_forwards = 0;
  RowCounts counts =
      counts_of([](auto, auto rows) { return std::uint64_t{rows == 1}; }, &num_forwards);
  CHECK(num_forwards == 7);  // of 16, 16 and 1 rows, and of 2 rows until 8 were compared
  CHECK(counts.padding(9) == 0);
  CHECK(num_forwards == 8);
  for (const std::int64_t rows : {1, 2, 9, 16, 18, 25, 32, 400}) counts.padding(rows);
  CHECK(num_forwards == 8);
}

TEST_CASE("row counts: other sums are found though rounding hides them in most rows") {
  const auto forward = [](std::int64_t past, std::int64_t rows) {
    std::vector<RowCounts::Digest> digests;
    for (std::int64_t row = past; row < past + rows; ++row) {
      digests.push_back(static_cast<std::uint64_t>(10 * row + (rows == 1 && row % 5 == 0)));
    }
    return digests;
  };
  CHECK(RowCounts(forward, 100, 8).padding(1) == 1);
}

TEST_CASE("row counts: without room to try, every row goes by itself") {
  int num_forwards = 0;
  RowCounts counts =
      counts_of([](auto, auto rows) { return std::uint64_t(rows); }, &num_forwards, 24);
  CHECK(num_forwards == 0);
  CHECK(counts.exact());
  CHECK(counts.unit() == 1);
  CHECK(counts.padding(1) == 0);
}

}  // namespace
}  // namespace pard
