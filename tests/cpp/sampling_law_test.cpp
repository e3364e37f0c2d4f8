// choose() draws from the distribution its parameters define, jointly over successive tokens.

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "chi_square.h"
#include "pard/choose.h"
#include "pard/composed_executor.h"
#include "pard/decoder.h"
#include "pard/draft.h"

namespace {

using pard::SamplingParams;
using pard::Token;

constexpr std::size_t vocab_size = 5;
constexpr std::size_t length = 4;
constexpr std::size_t num_cells = 5 * 5 * 5 * 5;
constexpr std::int64_t num_samples = 1'000'000;

// No correct sampler fails once in a million runs of this file's tests.
constexpr double significance = 1e-6 / 32;

// A Markov chain: the row after each token. No two prefixes of a row weigh nearly a top_p used
// here, no two tokens of a row tie.
constexpr float chain[vocab_size][vocab_size] = {
    {1.2F, 0.1F, -0.4F, 0.6F, -1.0F}, {-0.3F, 1.6F, 0.2F, -2.0F, 0.7F},
    {0.0F, -1.2F, 0.9F, 0.5F, 2.1F},  {3.0F, 2.2F, 1.1F, -0.5F, 0.4F},
    {-0.7F, 0.3F, 1.9F, 1.0F, -3.0F},
};

std::array<double, vocab_size> exact_law(const float (&row)[vocab_size], const SamplingParams& p) {
  std::array<double, vocab_size> probs{};
  std::array<std::size_t, vocab_size> ranking{0, 1, 2, 3, 4};
  std::sort(ranking.begin(), ranking.end(), [&](auto a, auto b) { return row[a] > row[b]; });
  const std::size_t kept = p.top_k > 0 ? static_cast<std::size_t>(p.top_k) : vocab_size;
  for (std::size_t i = 0; i < kept; ++i) {
    probs[ranking[i]] = std::exp((row[ranking[i]] - row[ranking[0]]) / double{p.temperature});
  }
  const auto total = [&] { return std::accumulate(probs.begin(), probs.end(), 0.0); };
  const double enough = p.top_p * total();
  double prefix = 0;
  for (std::size_t id : ranking) {
    const bool drop = prefix >= enough || probs[id] < p.min_p;
    prefix += probs[id];
    if (drop) probs[id] = 0;
  }
  const double sum = total();
  for (double& prob : probs) prob /= sum;
  return probs;
}

std::vector<double> exact_joint_law(const SamplingParams& params) {
  std::vector<double> law(num_cells, 1.0);
  for (std::size_t cell = 0; cell < num_cells; ++cell) {
    std::size_t previous = 0, rest = cell;
    for (std::size_t i = 0; i < length; ++i, rest /= vocab_size) {
      law[cell] *= exact_law(chain[previous], params)[rest % vocab_size];
      previous = rest % vocab_size;
    }
  }
  return law;
}

// The cell of the four tokens chosen at `position` and after; `revise` may replace the first.
template <class Revise>
std::size_t sample_cell(const SamplingParams& params, std::int64_t position, Revise revise) {
  std::size_t previous = 0, cell = 0, place = 1;
  for (std::size_t i = 0; i < length; ++i, place *= vocab_size) {
    const pard::LogitsRow row{chain[previous], pard::DType::f32, vocab_size};
    previous =
        static_cast<std::size_t>(choose(row, params, position + static_cast<std::int64_t>(i)));
    if (i == 0) previous = revise(previous);
    cell += place * previous;
  }
  return cell;
}

const auto as_chosen = [](std::size_t token) { return token; };

template <class Revise>
double p_value_over_seeds(SamplingParams params, Revise revise) {
  std::vector<std::int64_t> counts(num_cells);
  for (std::int64_t i = 0; i < num_samples; ++i) {
    params.seed = static_cast<std::uint64_t>(i);
    ++counts[sample_cell(params, 0, revise)];
  }
  return pard::test::sequence_test(counts, exact_joint_law(params), vocab_size);
}

double p_value_over_positions(SamplingParams params) {
  params.seed = 20240229;
  std::vector<std::int64_t> counts(num_cells);
  for (std::int64_t i = 0; i < num_samples; ++i) {
    ++counts[sample_cell(params, i * static_cast<std::int64_t>(length), as_chosen)];
  }
  return pard::test::sequence_test(counts, exact_joint_law(params), vocab_size);
}

// The chain as a Model, `tilt` added to one token's logits; a mask token, 5, stands for token 2.
class ChainModel final : public pard::Model {
 public:
  explicit ChainModel(float tilt) {
    info_ = {
        .name = "chain", .vocab_size = vocab_size + 1, .max_length = 64, .num_tokens = vocab_size};
    for (std::size_t token = 0; token <= vocab_size; ++token) {
      std::copy_n(chain[token == vocab_size ? 2 : token], vocab_size, rows_[token].begin());
      rows_[token][1] += tilt;
      rows_[token][vocab_size] = -std::numeric_limits<float>::infinity();
    }
  }
  const pard::ModelInfo& info() const override { return info_; }
  void release(pard::SequenceId) noexcept override {}
  pard::LogitsView forward(std::span<const pard::ForwardItem> batch) override {
    logits_.clear();
    for (const pard::ForwardItem& item : batch) {
      for (const Token token : item.tokens.last(static_cast<std::size_t>(item.num_rows))) {
        const auto& row = rows_[static_cast<std::size_t>(token)];
        logits_.insert(logits_.end(), row.begin(), row.end());
      }
    }
    const auto width = static_cast<std::int64_t>(vocab_size + 1);
    return {logits_.data(), pard::DType::f32, static_cast<std::int64_t>(logits_.size()) / width,
            width, width};
  }

 private:
  pard::ModelInfo info_;
  std::array<std::array<float, vocab_size + 1>, vocab_size + 1> rows_;
  std::vector<float> logits_;
};

// The same over speculative decoding: three proposals a round, of a draft that leans another way.
double p_value_of_speculation(SamplingParams params, bool parallel) {
  const auto draft = std::make_shared<ChainModel>(1.0F);
  std::shared_ptr<pard::Drafter> drafter;
  if (parallel) {
    drafter = std::make_shared<pard::ParallelDrafter>(draft, static_cast<Token>(vocab_size));
  } else {
    drafter = std::make_shared<pard::AutoregressiveDrafter>(draft);
  }
  pard::Decoder decoder(
      std::make_unique<pard::ComposedExecutor>(std::make_shared<ChainModel>(0.0F), drafter),
      {.num_speculative_tokens = 3});
  std::vector<std::int64_t> counts(num_cells);
  for (std::int64_t i = 0; i < num_samples; ++i) {
    params.seed = static_cast<std::uint64_t>(i);
    const auto sequence = decoder.add({0}, {.sampling = params, .max_new_tokens = length});
    decoder.run();
    std::size_t cell = 0, place = 1;
    for (const Token token : sequence->generated()) {
      cell += place * static_cast<std::size_t>(token);
      place *= vocab_size;
    }
    ++counts[cell];
  }
  CHECK(decoder.counts().accepted > num_samples / 4);
  CHECK(decoder.counts().accepted < decoder.counts().drafted);
  return pard::test::sequence_test(counts, exact_joint_law(params), vocab_size);
}

struct Setting {
  const char* name;
  SamplingParams params;
};

const Setting settings[] = {
    {"temperature 1", {.temperature = 1.0F}},
    {"temperature 0.7", {.temperature = 0.7F}},
    {"top_k 3", {.temperature = 1.0F, .top_k = 3}},
    {"top_p 0.8", {.temperature = 1.0F, .top_p = 0.8F}},
    {"min_p 0.2", {.temperature = 1.0F, .min_p = 0.2F}},
    {"all filters", {.temperature = 1.3F, .top_k = 4, .top_p = 0.93F, .min_p = 0.15F}},
};

}  // namespace

TEST_CASE("p-values of the chi-square distribution agree with tables") {
  CHECK(pard::test::chi_square_p_value(3.841459, 1) == doctest::Approx(0.05).epsilon(1e-5));
  CHECK(pard::test::chi_square_p_value(18.307038, 10) == doctest::Approx(0.05).epsilon(1e-5));
  CHECK(pard::test::chi_square_p_value(2.558212, 10) == doctest::Approx(0.99).epsilon(1e-5));
  CHECK(pard::test::chi_square_p_value(39.252355, 16) == doctest::Approx(0.001).epsilon(1e-5));
}

TEST_CASE("four tokens drawn under different seeds follow the exact joint law") {
  for (const Setting& setting : settings) {
    CAPTURE(setting.name);
    CHECK(p_value_over_seeds(setting.params, as_chosen) > significance);
  }
}

TEST_CASE("four tokens drawn at successive positions of one seed follow the exact joint law") {
  for (const Setting& setting : {settings[0], settings[1], settings[5]}) {
    CAPTURE(setting.name);
    CHECK(p_value_over_positions(setting.params) > significance);
  }
}

TEST_CASE("speculation: four tokens of a parallel draft's rounds follow the exact joint law") {
  for (const Setting& setting : settings) {
    CAPTURE(setting.name);
    CHECK(p_value_of_speculation(setting.params, true) > significance);
  }
}

TEST_CASE("speculation: four tokens of an autoregressive draft's rounds do too") {
  CHECK(p_value_of_speculation(settings[5].params, false) > significance);
}

TEST_CASE("a sampler one hundredth off in total variation is caught") {
  const SamplingParams& params = settings[0].params;
  std::mt19937_64 generator(7);
  std::bernoulli_distribution moves(0.01 / exact_law(chain[0], params)[0]);
  const auto biased = [&](std::size_t token) {
    return token == 0 && moves(generator) ? std::size_t{3} : token;
  };
  CHECK(p_value_over_seeds(params, biased) < significance);
}
