#include "choose.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "choose_arithmetic.h"
#include "choose_kernels.h"
#include "error.h"
#include "logits_device.h"
#include "noise.h"

namespace pard {
namespace {

using namespace detail;

const Kernels& kernels() {
  static const Kernels& fastest = available_kernels().back();
  return fastest;
}

void check_row(const LogitsRow& row) {
  if (row.size < 1 || row.size > max_vocab_size) {
    throw LogitsError({"A logits row has an unusable length",
                       "1 to " + std::to_string(max_vocab_size) + " entries",
                       std::to_string(row.size),
                       "Check the vocab_size of the LogitsView the model returned."});
  }
}

// Where in the row a token's logit is.
Token index_of(const LogitsRow& row, Token token) {
  const Token* const found =
      row.ids == nullptr ? nullptr : std::lower_bound(row.ids, row.ids + row.size, token);
  const Token index = found == nullptr ? token : static_cast<Token>(found - row.ids);
  if (index < 0 || index >= row.size || (found != nullptr && *found != token)) {
    throw InvalidArgument({"This token id has no logit",
                           found == nullptr ? "0 to " + std::to_string(row.size - 1)
                                            : "one of the row's " + std::to_string(row.size),
                           std::to_string(token), "Pass an id of the model's own vocabulary."});
  }
  return index;
}

// The row where the host can read it: itself, or its copy.
LogitsRow on_host(LogitsRow row, std::vector<std::byte>& copy) {
  check_row(row);
  if (row.device == nullptr) return row;
  copy.resize(static_cast<std::size_t>(row.size) * size_of(row.dtype));
  row.device->read(copy.data(), row.data, copy.size());
  return {copy.data(), row.dtype, row.size, nullptr, row.ids};
}

// Elements [first, first + count) as floats: in place, or converted into `converted`.
const float* floats_of(const LogitsRow& row, std::int64_t first, std::int64_t count,
                       float* converted) {
  if (row.dtype == DType::f32) return static_cast<const float*>(row.data) + first;
  kernels().widen(row, first, count, converted);
  return converted;
}

[[noreturn]] void throw_unusable(const LogitsRow& row, float max) {
  const std::string expected = "every logit finite or -inf, and at least one finite";
  const std::string remedy =
      "Check the model's weights, its precision and any mask it applies to its logits.";
  if (max == -infinity) {
    throw LogitsError({"No token can be chosen from a logits row", expected,
                       "-inf for all " + std::to_string(row.size) + " token ids", remedy});
  }
  float logit;
  std::int64_t id = 0;
  while ((logit = *floats_of(row, id, 1, &logit)) < infinity) ++id;
  throw LogitsError(
      {"No token can be chosen from a logits row", expected,
       (logit == infinity ? "+inf for token id " : "NaN for token id ") + std::to_string(id),
       remedy});
}

// The maximum of a row and of each of its blocks. Scratch memory is kept per thread: choosing
// allocates once.
struct Maxima {
  std::vector<float>& blocks;
  float max = -infinity;
  Token argmax = 0;
};

// A block holding the maximum is searched for it only once the maximum is known.
Maxima find_maxima(const LogitsRow& row) {
  // Converted pieces stay in the nearest cache.
  constexpr std::int64_t piece = 64 * block_size;
  static thread_local std::vector<float> blocks;
  blocks.resize(num_blocks(static_cast<Token>(row.size)));
  float converted[piece];
  bool free_of_nan = true;
  const std::int64_t step = row.dtype == DType::f32 ? row.size : piece;
  for (std::int64_t first = 0; first < row.size; first += step) {
    const std::int64_t count = std::min(step, row.size - first);
    const float* logits = floats_of(row, first, count, converted);
    free_of_nan &= kernels().block_maxima(logits, static_cast<Token>(count),
                                          blocks.data() + first / block_size);
  }

  const auto top = std::max_element(blocks.begin(), blocks.end());
  if (!free_of_nan || *top == infinity || *top == -infinity) {
    throw_unusable(row, free_of_nan ? *top : infinity);
  }
  const std::int64_t first = (top - blocks.begin()) * block_size;
  const std::int64_t count = std::min<std::int64_t>(block_size, row.size - first);
  const float* logits = floats_of(row, first, count, converted);
  const auto offset = std::find(logits, logits + count, *top) - logits;
  return {blocks, *top, static_cast<Token>(first + offset)};
}

// The row as every later pass reads it.
Row prepare(const LogitsRow& row, const Maxima& maxima, float inverse_temperature) {
  static thread_local std::vector<float> converted;
  if (row.dtype != DType::f32) converted.resize(static_cast<std::size_t>(row.size));
  return {{maxima.max, inverse_temperature},
          floats_of(row, 0, row.size, converted.data()),
          static_cast<Token>(row.size),
          maxima.blocks.data(),
          maxima.argmax};
}

bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Ends the kept tokens where their prefix first weighs `share(total weight)`: the histogram finds
// the bin in which that happens, then a selection by weight within the bin finds the token.
template <class Share>
Cutoff shortest_prefix(const Row& row, Cutoff kept, Measure measure, Share share) {
  static thread_local std::vector<std::uint64_t> bins;
  bins.assign(num_bins, 0);
  const std::uint64_t total = kernels().histogram(row, kept, measure, bins.data());
  std::uint64_t missing = share(total);
  if (missing >= total) return kept;
  std::int32_t bin = 0;
  for (; bins[static_cast<std::size_t>(bin)] < missing; ++bin) {
    missing -= bins[static_cast<std::size_t>(bin)];
  }

  static thread_local std::vector<Candidate> candidates;
  candidates.clear();
  kernels().gather(row, kept, measure, bin, candidates);
  auto first = candidates.begin(), last = candidates.end();
  while (last - first > 1) {  // the answer lies in [first, last), `missing` counted from first
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, ranks_before);
    std::uint64_t weight = 0;
    for (auto it = first; it != middle; ++it) weight += it->weight;
    if (weight >= missing) {
      last = middle;
    } else {
      missing -= weight;
      first = middle;
    }
  }
  return {first->logit, first->id};
}

Cutoff keep_top_k(const Row& row, std::size_t k) {
  // k blocks reach the k-th largest of their maxima, so at least k tokens do.
  Cutoff kept = keep_all;
  const std::size_t count = num_blocks(row.size);
  if (k <= count) {
    static thread_local std::vector<float> maxima;
    maxima.assign(row.block_maxima, row.block_maxima + count);
    const auto kth = maxima.begin() + static_cast<std::ptrdiff_t>(k) - 1;
    std::nth_element(maxima.begin(), kth, maxima.end(), std::greater<>());
    kept = {*kth, any_id};
  }
  return shortest_prefix(row, kept, Measure::count, [k](std::uint64_t) { return k; });
}

Cutoff keep_top_p(const Row& row, Cutoff kept, float top_p) {
  return shortest_prefix(row, kept, Measure::probability, [top_p](std::uint64_t total) {
    const double share = static_cast<double>(total) * static_cast<double>(top_p);
    return std::max(static_cast<std::uint64_t>(share), std::uint64_t{1});
  });
}

Cutoff keep_min_p(const Row& row, Cutoff kept, const SamplingParams& params) {
  const float smallest_normal = std::numeric_limits<float>::min();
  const float log_share = noise::log(std::max(params.min_p, smallest_normal));
  const float threshold = row.max + params.temperature * log_share;
  return threshold > kept.logit ? Cutoff{threshold, any_id} : kept;
}

Cutoff filter(const Row& row, const SamplingParams& params) {
  Cutoff kept = keep_all;
  if (params.top_k > 0) kept = keep_top_k(row, static_cast<std::size_t>(params.top_k));
  if (params.top_p < 1.0F) kept = keep_top_p(row, kept, params.top_p);
  if (params.min_p > 0.0F) kept = keep_min_p(row, kept, params);
  return kept;
}

void require(bool holds, const char* name, const char* expected, float actual, const char* remedy) {
  if (holds) return;
  char text[32];
  char* const end = std::to_chars(std::begin(text), std::end(text), actual).ptr;
  throw InvalidArgument({std::string("The sampling parameter ") + name + " is out of range",
                         expected, std::string(std::begin(text), end), remedy});
}

// A row of some tokens as one of all: the others are at -inf.
LogitsRow spread(const LogitsRow& row) {
  static thread_local std::vector<float> all, own;
  all.assign(static_cast<std::size_t>(row.ids[row.size - 1]) + 1, -infinity);
  own.resize(static_cast<std::size_t>(row.size));
  const float* logits = floats_of(row, 0, row.size, own.data());
  for (std::int64_t i = 0; i < row.size; ++i) all[static_cast<std::size_t>(row.ids[i])] = logits[i];
  return {all.data(), DType::f32, static_cast<std::int64_t>(all.size())};
}

}  // namespace

void SamplingParams::validate() const {
  // Each condition is false for NaN.
  require(temperature == 0.0F || (temperature >= min_temperature && temperature < infinity),
          "temperature", "0, or a finite value of at least 0.0001", temperature,
          "Use 0 for greedy decoding.");
  require(top_k >= 0, "top_k", "0 or more", static_cast<float>(top_k),
          "Use 0 to keep every token.");
  require(top_p > 0.0F && top_p <= 1.0F, "top_p", "a value in (0, 1]", top_p,
          "Use 1 to keep every token.");
  require(min_p >= 0.0F && min_p <= 1.0F, "min_p", "a value in [0, 1]", min_p,
          "Use 0 to keep every token.");
}

Token choose(const LogitsRow& borrowed, const SamplingParams& params, std::int64_t position) {
  params.validate();
  std::vector<std::byte> copy;
  LogitsRow row = on_host(borrowed, copy);
  if (row.ids != nullptr && params.temperature > 0.0F) row = spread(row);
  const Maxima maxima = find_maxima(row);
  if (params.temperature == 0.0F) {
    return row.ids == nullptr ? maxima.argmax : row.ids[maxima.argmax];
  }
  const Row prepared = prepare(row, maxima, 1.0F / params.temperature);
  return kernels().best(prepared, filter(prepared, params), params.seed, position);
}

double score(const LogitsRow& borrowed, const SamplingParams& params, std::int64_t position,
             Token token) {
  params.validate();
  std::vector<std::byte> copy;
  const LogitsRow row = on_host(borrowed, copy);
  const Token index = index_of(row, token);
  float logit;
  const float distance = *floats_of(row, index, 1, &logit) - find_maxima(row).max;
  if (params.temperature == 0.0F) return distance;
  return distance * (1.0F / params.temperature) + noise::gumbel(params.seed, position, token);
}

double log_probability(const LogitsRow& borrowed, Token token) {
  std::vector<std::byte> copy;
  const LogitsRow row = on_host(borrowed, copy);
  const Token index = index_of(row, token);
  const Row prepared = prepare(row, find_maxima(row), 1.0F);
  const double distance = static_cast<double>(prepared.logits[index]) - prepared.max;
  return distance - std::log(kernels().sum_exp(prepared));
}

void widen(const LogitsRow& borrowed, float* out) {
  std::vector<std::byte> copy;
  const LogitsRow row = on_host(borrowed, copy);
  const float* logits = floats_of(row, 0, row.size, out);
  if (logits != out) std::copy_n(logits, row.size, out);
}

}  // namespace pard
