// choose() against a slow twin written from its definition, and its kernels against each other.

#include "pard/choose.h"
#include "fake_model.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "pard/choose_kernels.h"
#include "pard/error.h"
#include "pard/noise.h"

namespace {

using pard::DType;
using pard::LogitsRow;
using pard::SamplingParams;
using pard::Token;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

LogitsRow row_of(const std::vector<float>& logits) {
  return {logits.data(), DType::f32, static_cast<std::int64_t>(logits.size())};
}

Token choose(const std::vector<float>& logits, const SamplingParams& params = {},
             std::int64_t position = 0) {
  return pard::choose(row_of(logits), params, position);
}

std::vector<float> random_row(std::size_t size, float deviation, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> row(size);
  for (float& logit : row) logit = normal(generator);
  return row;
}

// Rows full of ties, with masked tokens.
std::vector<float> coarse_row(std::size_t size, std::uint32_t seed) {
  std::vector<float> row = random_row(size, 3.0F, seed);
  for (float& logit : row) logit = logit < -3.0F ? -infinity : std::round(logit * 2) / 2;
  row[size / 2] = 0.0F;
  return row;
}

double value_of_half(std::uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double sign = half & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? not_a_number : sign * static_cast<double>(infinity);
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

float value_of_bfloat(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

// The definition, word for word: sort, cut, score.
Token twin(const std::vector<float>& row, const SamplingParams& params, std::int64_t position) {
  std::vector<std::size_t> ranking(row.size());
  std::iota(ranking.begin(), ranking.end(), std::size_t{0});
  std::sort(ranking.begin(), ranking.end(), [&](std::size_t a, std::size_t b) {
    return row[a] > row[b] || (row[a] == row[b] && a < b);
  });
  const float max = row[ranking[0]];
  if (params.temperature == 0.0F) return static_cast<Token>(ranking[0]);

  std::size_t kept = ranking.size();
  if (params.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(params.top_k));
  if (params.top_p < 1.0F) {
    std::vector<double> mass;
    for (std::size_t i = 0; i < kept; ++i) {
      mass.push_back(std::exp(double{row[ranking[i]] - max} / params.temperature));
    }
    const double enough = params.top_p * std::accumulate(mass.begin(), mass.end(), 0.0);
    double prefix = mass[0];
    for (kept = 1; prefix < enough; ++kept) prefix += mass[kept];
  }
  if (params.min_p > 0.0F) {
    const double threshold = max + params.temperature * std::log(double{params.min_p});
    while (row[ranking[kept - 1]] < threshold) --kept;
  }

  float best_score = -infinity;
  std::size_t best = ranking[0];
  for (std::size_t i = 0; i < kept; ++i) {
    const std::size_t id = ranking[i];
    const float score = (row[id] - max) * (1.0F / params.temperature) +
                        pard::noise::gumbel(params.seed, position, static_cast<Token>(id));
    if (score > best_score || (score == best_score && id < best)) {
      best_score = score;
      best = id;
    }
  }
  return static_cast<Token>(best);
}

std::vector<SamplingParams> many_params() {
  return {
      {},
      {.temperature = 1.0F},
      {.temperature = 0.6F},
      {.temperature = 7.0F},
      {.temperature = SamplingParams::min_temperature},
      {.temperature = 1.0F, .top_k = 1},
      {.temperature = 1.5F, .top_k = 20},
      {.temperature = 1.0F, .top_k = 1 << 20},
      {.temperature = 1.0F, .top_p = 0.9F},
      {.temperature = 2.0F, .top_p = 0.31F},
      {.temperature = 1.0F, .top_p = 1e-30F},
      {.temperature = 1.0F, .min_p = 0.07F},
      {.temperature = 1.0F, .min_p = 1.0F},
      {.temperature = 1.0F, .min_p = 1e-42F},
      {.temperature = 1.2F, .top_k = 50, .top_p = 0.93F, .min_p = 0.02F},
  };
}

void check_against_twin(const std::vector<float>& row, int num_draws) {
  for (SamplingParams params : many_params()) {
    CAPTURE(params.temperature);
    CAPTURE(params.top_k);
    CAPTURE(params.top_p);
    CAPTURE(params.min_p);
    for (int draw = 0; draw < num_draws; ++draw) {
      params.seed = static_cast<std::uint64_t>(draw) * 0x123456789ABULL;
      const std::int64_t position = draw * 37;
      REQUIRE(choose(row, params, position) == twin(row, params, position));
    }
  }
}

// A row with what its kernels read.
struct Prepared {
  explicit Prepared(const float* logits, std::size_t size, float temperature)
      : maxima(pard::detail::num_blocks(static_cast<Token>(size))) {
    for (std::size_t i = 0; i < size; ++i) {
      float& block = maxima[i / pard::detail::block_size];
      block = i % pard::detail::block_size == 0 ? logits[i] : std::max(block, logits[i]);
    }
    const float* top = std::max_element(logits, logits + size);
    row = {{*top, 1.0F / temperature},
           logits,
           static_cast<Token>(size),
           maxima.data(),
           static_cast<Token>(top - logits)};
  }

  std::vector<float> maxima;
  pard::detail::Row row{};
};

// All that the kernels say about a row, in one sequence of integers.
std::vector<std::uint64_t> transcript(const pard::detail::Kernels& kernels,
                                      const Prepared& prepared, pard::detail::Cutoff kept) {
  using pard::detail::Measure;
  const pard::detail::Row& row = prepared.row;
  std::vector<std::uint64_t> said;
  std::vector<float> maxima(prepared.maxima.size());
  said.push_back(kernels.block_maxima(row.logits, row.size, maxima.data()));
  for (float max : maxima) said.push_back(std::bit_cast<std::uint32_t>(max));
  said.push_back(static_cast<std::uint64_t>(kernels.best(row, kept, 12345, 678)));
  for (Measure measure : {Measure::count, Measure::probability}) {
    std::vector<std::uint64_t> bins(pard::detail::num_bins);
    said.push_back(kernels.histogram(row, kept, measure, bins.data()));
    said.insert(said.end(), bins.begin(), bins.end());
    const auto fullest = std::max_element(bins.begin(), bins.end()) - bins.begin();
    std::vector<pard::detail::Candidate> candidates;
    kernels.gather(row, kept, measure, static_cast<std::int32_t>(fullest), candidates);
    for (const auto& candidate : candidates) {
      said.push_back(static_cast<std::uint64_t>(candidate.id));
      said.push_back(candidate.weight);
    }
  }
  said.push_back(std::bit_cast<std::uint64_t>(kernels.sum_exp(row)));
  return said;
}

template <class Exception, class Body>
pard::ErrorDetail detail_of(Body body) {
  try {
    body();
  } catch (const Exception& error) {
    return error.detail();
  }
  FAIL("nothing was thrown");
  return {};
}

}  // namespace

TEST_CASE("Philox gives the published answers") {
  using pard::noise::philox;
  const auto equals = [](pard::noise::Philox got, std::vector<std::uint32_t> expected) {
    return std::equal(expected.begin(), expected.end(), got.word);
  };
  CHECK(equals(philox({{0, 0, 0, 0}}, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const std::uint32_t ones = 0xffffffff;
  CHECK(equals(philox({{ones, ones, ones, ones}}, ones, ones),
               {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK(equals(philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
               {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST_CASE("noise differs by seed, position and token, in every one of their words") {
  using pard::noise::gumbel;
  std::vector<float> noise;
  for (std::uint64_t seed : {0ULL, 1ULL, 1ULL << 32}) {
    for (std::int64_t position : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1} << 32}) {
      for (Token token = 0; token < 9; ++token) noise.push_back(gumbel(seed, position, token));
    }
  }
  std::sort(noise.begin(), noise.end());
  CHECK(std::adjacent_find(noise.begin(), noise.end()) == noise.end());
}

TEST_CASE("noise is a Gumbel variate to a float's precision, and falls as its bits rise") {
  std::mt19937 generator(1);
  std::vector<std::uint32_t> samples;
  for (std::uint32_t i = 0; i < 4096; ++i) {
    samples.insert(samples.end(), {i, ~i, 0x55555555U + i, 0x55555555U - i, 0x80000000U + i});
  }
  for (int shift = 0; shift < 32; ++shift) {
    for (int i = 0; i < 4096; ++i) {
      samples.push_back(static_cast<std::uint32_t>(generator()) >> shift);
      samples.push_back(~samples.back());
    }
  }
  std::sort(samples.begin(), samples.end());
  float previous = pard::noise::gumbel_max;
  double worst = 0;
  bool falls = true;
  for (std::uint32_t x : samples) {
    const float noise = pard::noise::gumbel(x);
    const double exact = -std::log(-std::log1p(-(x + 0.5) * 0x1p-32));
    worst = std::max(worst, std::abs(noise - exact) / (1 + std::abs(exact)));
    falls &= noise <= previous;
    previous = noise;
  }
  CHECK(worst < 1.3e-7);
  CHECK(falls);
  CHECK(pard::noise::gumbel(0U) == pard::noise::gumbel_max);
}

TEST_CASE("temperature 0 takes the largest logit, the lowest id among equals") {
  CHECK(choose({1.0F, 3.0F, 3.0F, 2.0F}) == 1);
  CHECK(choose({-infinity, -5.0F, -infinity}) == 1);
  CHECK(choose({-1.0F, -0.0F, 0.0F}) == 1);
  CHECK(choose({7.0F}) == 0);
  for (std::size_t size : {63U, 64U, 65U, 4096U, 10'000U}) {
    std::vector<float> row(size, -1.0F);
    for (std::size_t id : {size - 1, size / 2, std::size_t{0}}) {
      row[id] = 2.0F;
      CHECK(choose(row) == static_cast<Token>(id));
    }
  }
}

TEST_CASE("temperature 0 ignores filters and noise") {
  const std::vector<float> row = random_row(1000, 1.0F, 3);
  const SamplingParams params{.top_k = 5, .top_p = 0.1F, .min_p = 0.9F, .seed = 99};
  CHECK(choose(row, params, 5) == choose(row));
}

TEST_CASE("between equal logits the noise decides") {
  std::vector<float> row(200, -infinity);
  row[150] = row[70] = 1.0F;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const SamplingParams params{.temperature = 1.0F, .seed = seed};
    const bool first = pard::noise::gumbel(seed, 0, 70) >= pard::noise::gumbel(seed, 0, 150);
    CHECK(choose(row, params) == (first ? 70 : 150));
  }
}

TEST_CASE("choose agrees with its definition on rows of every shape") {
  for (std::size_t size : {1U, 2U, 5U, 63U, 64U, 65U, 300U, 1000U}) {
    CAPTURE(size);
    const auto seed = static_cast<std::uint32_t>(size);
    check_against_twin(random_row(size, 1.0F, seed), 40);
    check_against_twin(random_row(size, 12.0F, seed + 1), 40);
    check_against_twin(coarse_row(size, seed + 2), 40);
    check_against_twin(std::vector<float>(size, -4.0F), 20);
  }
}

TEST_CASE("choose agrees with its definition on a full vocabulary") {
  check_against_twin(random_row(151'936, 1.0F, 1), 2);
  check_against_twin(random_row(151'936, 4.0F, 2), 2);
  check_against_twin(coarse_row(151'936, 3), 2);
  const SamplingParams wide{.temperature = 1.0F, .top_k = 20'000, .top_p = 0.99F};
  const std::vector<float> row = random_row(151'936, 1.0F, 4);
  CHECK(choose(row, wide, 3) == twin(row, wide, 3));
}

TEST_CASE("top_k keeps exactly k tokens, ties by id") {
  std::vector<float> row(500, 1.0F);
  row[499] = 2.0F;
  std::vector<bool> seen(row.size());
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const SamplingParams params{.temperature = 50.0F, .top_k = 4, .seed = seed};
    seen[static_cast<std::size_t>(choose(row, params))] = true;
  }
  std::vector<bool> expected(row.size());
  for (std::size_t id : {0U, 1U, 2U, 499U}) expected[id] = true;
  CHECK(seen == expected);
}

TEST_CASE("a 16-bit row chooses what its values chosen as floats do") {
  std::mt19937 generator(11);
  for (std::size_t size : {1U, 70U, 5000U, 32'000U}) {
    std::vector<std::uint16_t> halves, bfloats;
    std::vector<float> half_values, bfloat_values;
    for (const float logit : random_row(size, 4.0F, static_cast<std::uint32_t>(size))) {
      const auto bfloat = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(logit) >> 16);
      const auto half =
          static_cast<std::uint16_t>((generator() & 0x83FF) | (generator() % 19 << 10));
      bfloats.push_back(bfloat);
      bfloat_values.push_back(value_of_bfloat(bfloat));
      halves.push_back(half);
      half_values.push_back(static_cast<float>(value_of_half(half)));
    }
    const auto count = static_cast<std::int64_t>(size);
    const LogitsRow half_row{halves.data(), DType::f16, count};
    const LogitsRow bfloat_row{bfloats.data(), DType::bf16, count};
    for (SamplingParams params : many_params()) {
      for (std::int64_t position = 0; position < 5; ++position) {
        REQUIRE(pard::choose(half_row, params, position) == choose(half_values, params, position));
        REQUIRE(pard::choose(bfloat_row, params, position) ==
                choose(bfloat_values, params, position));
      }
    }
    CHECK(pard::log_probability(half_row, 0) == pard::log_probability(row_of(half_values), 0));
  }
}

TEST_CASE("every 16-bit value converts exactly, on every vector width") {
  std::vector<std::uint16_t> all(1 << 16);
  std::iota(all.begin(), all.end(), std::uint16_t{0});
  std::vector<float> values(all.size());
  const auto size = static_cast<std::int64_t>(all.size());
  for (const auto& kernels : pard::detail::available_kernels()) {
    CAPTURE(std::string(kernels.name));
    for (DType dtype : {DType::f16, DType::bf16}) {
      kernels.widen({all.data(), dtype, size}, 0, size, values.data());
      int num_wrong = 0;
      for (std::size_t i = 0; i < all.size(); ++i) {
        const float expected = dtype == DType::f16 ? static_cast<float>(value_of_half(all[i]))
                                                   : value_of_bfloat(all[i]);
        const bool same =
            std::bit_cast<std::uint32_t>(values[i]) == std::bit_cast<std::uint32_t>(expected);
        if (!same && !(std::isnan(values[i]) && std::isnan(expected))) ++num_wrong;
      }
      CHECK(num_wrong == 0);
    }
  }
}

TEST_CASE("every vector width gives the same bits") {
  const auto all = pard::detail::available_kernels();
  const auto check = [&](const std::vector<float>& logits, std::size_t offset, float temperature) {
    const Prepared prepared(logits.data() + offset, logits.size() - offset, temperature);
    const pard::detail::Cutoff some{prepared.row.max - 2.5F, 40};
    for (pard::detail::Cutoff kept : {pard::detail::keep_all, some}) {
      const auto expected = transcript(all[0], prepared, kept);
      for (const auto& kernels : all.subspan(1)) {
        CAPTURE(std::string(kernels.name));
        REQUIRE(transcript(kernels, prepared, kept) == expected);
      }
    }
  };
  for (std::uint32_t size = 1; size <= 300; ++size) {
    const std::size_t offset = size % 7;
    check(random_row(size + offset, 3.0F, size), offset, 0.8F);
    check(coarse_row(size + offset, size), size / 2, 1.0F);
  }
  check(random_row(151'937, 1.0F, 1), 1, 1.0F);
  check(random_row(151'936, 5.0F, 2), 3, 0.3F);
}

TEST_CASE("a token weighs 2^40 times its share of the likeliest") {
  for (const auto& kernels : pard::detail::available_kernels()) {
    for (float distance = 0.0F; distance < 30.0F; distance += 0.037F) {
      const std::vector<float> logits{0.0F, -distance};
      const Prepared prepared(logits.data(), 2, 1.0F);
      std::vector<std::uint64_t> bins(pard::detail::num_bins);
      const auto measure = pard::detail::Measure::probability;
      const std::uint64_t total =
          kernels.histogram(prepared.row, pard::detail::keep_all, measure, bins.data());
      const double weight = static_cast<double>(total) - 0x1p40;
      const double exact = std::exp(-double{distance}) * 0x1p40;
      REQUIRE(std::abs(weight - exact) <= 1.5e-7 * exact + 1);
    }
  }
}

TEST_CASE("log_probability is log softmax") {
  for (float deviation : {1.0F, 30.0F}) {
    std::vector<float> row = random_row(3001, deviation, 9);
    row[17] = -infinity;
    long double sum = 0;
    const float max = *std::max_element(row.begin(), row.end());
    for (float logit : row) sum += std::exp(static_cast<long double>(logit) - max);
    for (Token token : {0, 1, 1500, 3000}) {
      const long double logit = row[static_cast<std::size_t>(token)];
      const long double exact = logit - max - std::log(sum);
      CHECK(pard::log_probability(row_of(row), token) ==
            doctest::Approx(static_cast<double>(exact)).epsilon(1e-13));
    }
    CHECK(pard::log_probability(row_of(row), 17) == -std::numeric_limits<double>::infinity());
  }
  const std::vector<float> spread{3e38F, -3e38F, 3e38F};
  CHECK(pard::log_probability(row_of(spread), 0) == doctest::Approx(-std::log(2.0)));
}

TEST_CASE("extreme but finite logits are chosen from") {
  const SamplingParams params{.temperature = SamplingParams::min_temperature};
  CHECK(choose({-3e38F, 3e38F, -infinity}, params) == 1);
  CHECK(choose({-3e38F, -3.1e38F}, params) == 0);
}

TEST_CASE("a row with NaN or +inf is refused by the id that holds it") {
  for (std::size_t size : {1U, 64U, 130U, 9000U}) {
    for (std::size_t id : {std::size_t{0}, size / 2, size - 1}) {
      for (float bad : {not_a_number, -not_a_number, infinity}) {
        std::vector<float> row = random_row(size, 1.0F, 5);
        row[id] = bad;
        const auto detail = detail_of<pard::LogitsError>([&] { choose(row); });
        const char* name = bad == infinity ? "+inf for token id " : "NaN for token id ";
        CHECK(detail.actual == name + std::to_string(id));
      }
    }
  }
  const std::vector<std::uint16_t> half{0x3C00, 0x7C00, 0x7E00};
  const LogitsRow row{half.data(), DType::f16, 3};
  CHECK(detail_of<pard::LogitsError>([&] { pard::choose(row, {}, 0); }).actual ==
        "+inf for token id 1");
}

TEST_CASE("a row no token can be chosen from is refused") {
  const std::vector<float> masked(100, -infinity);
  CHECK(detail_of<pard::LogitsError>([&] { choose(masked); }).actual ==
        "-inf for all 100 token ids");
  CHECK_THROWS_AS(choose(std::vector<float>{}), pard::LogitsError);
}

TEST_CASE("a row on a device is copied") {
  const pard::test::FakeDevice device;
  const std::vector<float> row{1.0F, -2.0F, 3.0F};
  std::vector<float> there(row.size()), back(row.size());
  device.read(there.data(), row.data(), row.size() * sizeof(float));
  const LogitsRow borrowed{there.data(), DType::f32, 3, &device};
  pard::widen(borrowed, back.data());
  CHECK(back == row);
  CHECK(pard::choose(borrowed, {}, 0) == 2);
  CHECK(pard::log_probability(borrowed, 0) == pard::log_probability(row_of(row), 0));
}

TEST_CASE("a row of some tokens chooses as the row of all does with the others at -inf") {
  const std::vector<Token> ids{3, 4, 9, 500, 1003, 2999};
  const std::vector<float> all = random_row(3001, 3.0F, 4);
  std::vector<float> some, others(all.size(), -infinity);
  for (const Token id : ids) {
    some.push_back(all[static_cast<std::size_t>(id)]);
    others[static_cast<std::size_t>(id)] = some.back();
  }
  const LogitsRow row{some.data(), DType::f32, 6, nullptr, ids.data()};
  for (std::int64_t position = 0; position < 50; ++position) {
    for (const SamplingParams& params :
         {SamplingParams{}, SamplingParams{.temperature = 1.0F, .seed = 3},
          SamplingParams{.temperature = 0.7F, .top_k = 3, .top_p = 0.8F, .min_p = 0.1F}}) {
      CHECK(pard::choose(row, params, position) == pard::choose(row_of(others), params, position));
    }
  }
  CHECK(pard::log_probability(row, 9) == pard::log_probability(row_of(others), 9));
  CHECK_THROWS_AS(pard::log_probability(row, 5), pard::InvalidArgument);
  CHECK_THROWS_AS(pard::log_probability(row, 3000), pard::InvalidArgument);
}

TEST_CASE("log_probability refuses a token outside the row") {
  const std::vector<float> row{1.0F, 2.0F};
  for (Token token : {-1, 2}) {
    CHECK_THROWS_AS(pard::log_probability(row_of(row), token), pard::InvalidArgument);
  }
}

TEST_CASE("sampling parameters out of range are refused by name") {
  const auto refused = [](const SamplingParams& params) {
    return detail_of<pard::InvalidArgument>([&] { params.validate(); }).problem;
  };
  const auto naming = [](const char* name) {
    return std::string("The sampling parameter ") + name + " is out of range";
  };
  for (float bad : {-1.0F, 1e-5F, not_a_number, infinity}) {
    CHECK(refused({.temperature = bad}) == naming("temperature"));
  }
  CHECK(refused({.top_k = -1}) == naming("top_k"));
  for (float bad : {0.0F, -0.5F, 1.5F, not_a_number})
    CHECK(refused({.top_p = bad}) == naming("top_p"));
  for (float bad : {-0.1F, 1.5F, not_a_number}) CHECK(refused({.min_p = bad}) == naming("min_p"));
  CHECK_NOTHROW(SamplingParams{}.validate());
  for (const SamplingParams& params : many_params()) CHECK_NOTHROW(params.validate());
  CHECK_THROWS_AS(choose({1.0F}, {.temperature = not_a_number}), pard::InvalidArgument);
}

TEST_CASE("of equal scores the lowest id wins, whichever block is looked at first") {
  const std::uint64_t seed = 6214316;  // the two largest variates of 128, and they are equal
  REQUIRE(pard::noise::gumbel(seed, 0, 12) == pard::noise::gumbel(seed, 0, 112));
  std::vector<float> row(128, 0.0F);
  const auto chosen = [&] {
    return pard::choose({row.data(), DType::f32, 128}, {.temperature = 1.0F, .seed = seed}, 0);
  };
  CHECK(chosen() == 12);
  row[127] = 0x1p-30F;  // the second block goes first; too little to move a score
  CHECK(chosen() == 12);
}

TEST_CASE("top_p and min_p cut at the exact place among equals") {
  const std::vector<float> row(4, 1.0F);
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const LogitsRow logits{row.data(), DType::f32, 4};
    CHECK(pard::choose(logits, {.temperature = 1.0F, .top_p = 0.5F, .seed = seed}, 0) < 2);
    CHECK(pard::choose(logits, {.temperature = 1.0F, .top_k = 2, .min_p = 1.0F, .seed = seed}, 0) <
          2);
  }
}

TEST_CASE("a seed's noise is the same for ever") {
  const pard::noise::Philox block = pard::noise::block(1, 2, 3);
  CHECK(block.word[0] == 0xd287d48bU);
  CHECK(block.word[1] == 0xf5e332f8U);
  CHECK(block.word[2] == 0x72dd5824U);
  CHECK(block.word[3] == 0x3ad4cf8fU);
}
