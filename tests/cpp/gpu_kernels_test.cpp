// The GPU kernels as plain C++, against choose() and verify() of the host.

#include "gpu_grid.h"
//
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels.h"
#include "pard/choose.h"
#include "pard/error.h"
#include "pard/verify.h"

namespace {

using pard::DType;
using pard::LogitsRow;
using pard::SamplingParams;
using pard::Token;
using pard::gpu::ChooseArgs;
using pard::gpu::DraftInputArgs;
using pard::gpu::max_rows;
using pard::gpu::Scratch;
using pard::gpu::slot_sampling;
using pard::gpu::SlotRecord;
using pard::gpu::SlotSampling;

constexpr float infinity = std::numeric_limits<float>::infinity();

struct TypedRows {
  std::vector<std::uint32_t> words;  // aligned for any of the types
  DType dtype;
  std::int64_t stride;

  LogitsRow row(std::int64_t index, std::int64_t size) const {
    const auto offset = static_cast<std::size_t>(index * stride) * pard::size_of(dtype);
    return {reinterpret_cast<const char*>(words.data()) + offset, dtype, size};
  }
};

// Normal logits, or coarse ones full of ties; some tokens masked. Written in a type by cutting
// bits.
TypedRows random_rows(std::int64_t rows, std::int64_t stride, DType dtype, bool coarse,
                      std::mt19937& random) {
  TypedRows out{{}, dtype, stride};
  const auto count = static_cast<std::size_t>(rows * stride);
  out.words.resize(count);
  std::normal_distribution<float> normal(0.0F, 3.0F);
  for (std::size_t i = 0; i < count; ++i) {
    float logit = normal(random);
    if (coarse) logit = logit < -4.0F ? -infinity : std::round(logit * 2) / 2;
    const auto bits = std::bit_cast<std::uint32_t>(logit);
    auto* halves = reinterpret_cast<std::uint16_t*>(out.words.data());
    if (dtype == DType::f32) out.words[i] = bits;
    if (dtype == DType::bf16) halves[i] = static_cast<std::uint16_t>(bits >> 16);
    if (dtype == DType::f16) {
      // Sign, exponent clamped to the half's range, ten bits of fraction; zeros and -inf as they
      // are.
      const std::uint32_t sign = bits >> 16 & 0x8000U, exponent = bits >> 23 & 255U;
      const std::uint32_t fraction = bits >> 13 & 1023U;
      std::uint32_t half = exponent < 103 ? 0 : (exponent - 112) << 10 | fraction;
      if (exponent < 113) half = exponent < 103 ? 0 : (fraction | 1024U) >> (113 - exponent);
      if (exponent == 255) half = 0x7C00U;
      halves[i] = static_cast<std::uint16_t>(sign | half);
    }
  }
  return out;
}

SamplingParams random_params(std::mt19937& random) {
  const auto pick = [&](auto... values) {
    const std::common_type_t<decltype(values)...> all[] = {values...};
    return all[random() % sizeof...(values)];
  };
  SamplingParams params;
  params.temperature = pick(0.0F, 0.3F, 0.8F, 1.0F, 2.5F);
  params.top_k = pick(0, 0, 1, 7, 40, 1 << 20);
  params.top_p = pick(1.0F, 1.0F, 0.95F, 0.3F, 1e-9F);
  params.min_p = pick(0.0F, 0.0F, 0.02F, 0.5F, 1.0F);
  params.seed = std::uint64_t{random()} << 32 | random();
  return params;
}

Token choose_on_grid(const LogitsRow& row, const SamplingParams& params, std::int64_t position) {
  const SlotSampling sampling = slot_sampling(params);
  Token token = -2;
  gpu_grid::run<Scratch>(1, 1, [&](Scratch& scratch) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(row.data) % 8 == 0;
    const pard::gpu::GpuRow logits{row.data, row.dtype, static_cast<Token>(row.size), aligned};
    const Token own = pard::gpu::choose_row(logits, sampling, position, scratch);
    if (pard::gpu::lane() == 0) token = own;
  });
  return token;
}

TEST_CASE("a row's token is that of choose()") {
  std::mt19937 random(5);
  for (int trial = 0; trial < 150; ++trial) {
    const DType dtype = std::array{DType::f32, DType::f16, DType::bf16}[random() % 3];
    const auto size = static_cast<std::int64_t>(std::array{1U, 5U, 64U, 259U, 1000U}[random() % 5]);
    const TypedRows rows = random_rows(2, size, dtype, random() % 2 == 0, random);
    const SamplingParams params = random_params(random);
    const LogitsRow row = rows.row(1, size);
    const std::int64_t position = random() % 1000;
    CAPTURE(trial);
    CAPTURE(size);
    Token expected;
    try {
      expected = pard::choose(row, params, position);
    } catch (const pard::LogitsError&) {
      expected = -1;
    }
    CHECK(choose_on_grid(row, params, position) == expected);
  }
}

TEST_CASE("a row that allows no choice yields none") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, infinity, -infinity}) {
    std::vector<float> row(100, bad == -infinity ? bad : 1.0F);
    row[70] = bad;
    const LogitsRow logits{row.data(), DType::f32, 100};
    CHECK(choose_on_grid(logits, {}, 3) == -1);
    CHECK(choose_on_grid(logits, {0.7F, 5, 0.9F, 0.1F, 1}, 3) == -1);
  }
}

// A batch of slots and all that a round on it reads and writes.
struct Batch {
  static constexpr std::int64_t capacity = 40;
  int slots, k;
  Token vocab_size;
  std::vector<Token> tokens;
  std::vector<std::int64_t> lengths;
  std::vector<SlotSampling> sampling;
  std::vector<SamplingParams> params;
  std::vector<std::int64_t> draft_tokens, draft_positions, draft_rows, target_tokens,
      target_positions;
  std::vector<std::int32_t> chosen, bad_draft;
  std::vector<std::uint32_t> arrived;
  std::vector<SlotRecord> records;

  Batch(int num_slots, int num_proposals, Token vocab, std::mt19937& random)
      : slots(num_slots), k(num_proposals), vocab_size(vocab) {
    const auto count = static_cast<std::size_t>(slots), wide = static_cast<std::size_t>(k);
    tokens.resize(count * capacity);
    for (Token& token : tokens) token = static_cast<Token>(random() % 50);
    for (int slot = 0; slot < slots; ++slot) {
      lengths.push_back(1 + static_cast<std::int64_t>(random() % 20));
      params.push_back(random_params(random));
      sampling.push_back(slot_sampling(params.back()));
    }
    draft_tokens.resize(count * 2 * wide, -1);
    draft_positions = draft_tokens;
    draft_rows.resize(count * wide, -1);
    target_tokens.resize(count * (wide + 1), -1);
    target_positions = target_tokens;
    chosen.resize(count * max_rows);
    bad_draft.resize(count);
    arrived.resize(count);
    records.resize(count);
  }

  std::span<const Token> committed(int slot) const {
    return std::span(tokens).subspan(
        static_cast<std::size_t>(slot * capacity),
        static_cast<std::size_t>(lengths[static_cast<std::size_t>(slot)]));
  }

  void build_input(Token filler, Token draft_vocab) {
    const DraftInputArgs args{tokens.data(),
                              lengths.data(),
                              sampling.data(),
                              capacity,
                              draft_tokens.data(),
                              draft_positions.data(),
                              draft_rows.data(),
                              target_tokens.data(),
                              target_positions.data(),
                              /*mask_token=*/99,
                              filler,
                              draft_vocab,
                              k};
    gpu_grid::run<int>(slots, 1, [&](int&) { pard::gpu::build_input(args); });
  }

  void choose(const TypedRows& rows, bool is_target) {
    const int num_rows = is_target ? k + 1 : k;
    const ChooseArgs args{rows.words.data(),
                          rows.stride,
                          vocab_size,
                          static_cast<std::int32_t>(rows.dtype),
                          num_rows,
                          is_target,
                          tokens.data(),
                          lengths.data(),
                          capacity,
                          sampling.data(),
                          target_tokens.data(),
                          chosen.data(),
                          bad_draft.data(),
                          arrived.data(),
                          records.data()};
    gpu_grid::run<Scratch>(num_rows, slots,
                           [&](Scratch& scratch) { pard::gpu::choose_and_verify(args, scratch); });
  }
};

TEST_CASE("the draft's input ends in the newest token and the masks") {
  std::mt19937 random(7);
  for (const int k : {1, 2, 5, 8}) {
    Batch batch(4, k, 60, random);
    batch.lengths = {1, k, k + 1, 20};
    batch.build_input(/*filler=*/3, /*draft_vocab=*/40);
    for (int slot = 0; slot < 4; ++slot) {
      const std::span<const Token> committed = batch.committed(slot);
      const auto n = static_cast<std::int64_t>(committed.size());
      for (int i = 0; i < k; ++i) {  // proposal i sees all committed tokens and i masks
        const std::int64_t row = batch.draft_rows[static_cast<std::size_t>(slot * k + i)];
        REQUIRE(row / (2 * k) == slot);
        CHECK(batch.draft_positions[static_cast<std::size_t>(row)] == n - 1 + i);
        CHECK((batch.draft_tokens[static_cast<std::size_t>(row)] == 99) == (i > 0));
      }
      for (int row = 0; row < 2 * k; ++row) {
        const auto at = static_cast<std::size_t>(slot * 2 * k + row);
        const std::int64_t position = batch.draft_positions[at];
        CHECK(position == std::max<std::int64_t>(n - k - 1, 0) + row);
        if (position >= n) continue;
        const Token token = committed[static_cast<std::size_t>(position)];
        CHECK(batch.draft_tokens[at] == (token < 40 ? token : 3));
      }
      const auto first = static_cast<std::size_t>(slot * (k + 1));
      CHECK(batch.target_tokens[first] == committed.back());
      for (int i = 0; i <= k; ++i) {
        CHECK(batch.target_positions[first + static_cast<std::size_t>(i)] == n - 1 + i);
      }
    }
  }
}

TEST_CASE("a round yields what choose() and verify() yield") {
  std::mt19937 random(11);
  int accepted_some = 0, bad = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const int slots = 1 + static_cast<int>(random() % 3), k = static_cast<int>(random() % 5);
    constexpr Token vocab_size = 61;
    Batch batch(slots, k, vocab_size, random);
    const TypedRows target = random_rows(slots * (k + 1), 64, DType::f32, false, random);
    TypedRows draft{{}, DType::f32, 64};  // mostly the target's own rows, so that proposals hold
    for (int slot = 0; slot < slots; ++slot) {
      const auto first = target.words.begin() + slot * (k + 1) * 64;
      draft.words.insert(draft.words.end(), first, first + k * 64);
    }
    const auto spoil = [&](TypedRows& rows, std::uint32_t value) {
      if (!rows.words.empty()) rows.words[random() % rows.words.size()] = value;
    };
    spoil(draft, std::bit_cast<std::uint32_t>(20.0F));
    if (trial % 5 == 0) spoil(draft, 0x7FC00000U);
    TypedRows rows = target;
    if (trial % 3 == 0) spoil(rows, 0x7FC00000U);
    if (trial % 4 == 0) batch.sampling[0].active = 0;

    const Batch before = batch;
    batch.build_input(0, vocab_size);
    if (k > 0) batch.choose(draft, false);
    batch.choose(rows, true);

    for (int slot = 0; slot < slots; ++slot) {
      const auto at = static_cast<std::size_t>(slot);
      const SlotRecord& record = batch.records[at];
      CAPTURE(trial);
      CAPTURE(slot);
      CHECK(batch.arrived[at] == 0);
      if (!batch.sampling[at].active) {
        CHECK(record.num_tokens == 0);
        continue;
      }
      const std::int64_t n = before.lengths[at];
      const auto choice = [&](const TypedRows& from, int per_slot, int i) {
        return pard::choose(from.row(slot * per_slot + i, vocab_size), batch.params[at], n + i);
      };
      std::vector<Token> proposals, expected;
      int accepted = 0;
      bool draft_is_bad = false, target_is_bad = false;
      try {
        for (int i = 0; i < k; ++i) proposals.push_back(choice(draft, k, i));
      } catch (const pard::LogitsError&) {
        draft_is_bad = true;
      }
      if (!draft_is_bad) {
        try {
          const pard::Verdict verdict = pard::verify(proposals, [&](int i) {
            expected.push_back(choice(rows, k + 1, i));
            return expected.back();
          });
          accepted = verdict.num_accepted;
        } catch (const pard::LogitsError&) {
          accepted = std::max(static_cast<int>(expected.size()) - 1, 0);
          target_is_bad = true;
        }
      }
      CHECK(record.bad_draft == draft_is_bad);
      CHECK(record.length == n);
      CHECK(record.num_accepted == accepted);
      CHECK(std::vector<Token>(record.tokens, record.tokens + record.num_tokens) == expected);
      CHECK(batch.lengths[at] == n + record.num_tokens);
      const std::span<const Token> committed = batch.committed(slot);
      const std::span<const Token> old = before.committed(slot);
      CHECK(std::equal(old.begin(), old.end(), committed.begin()));
      CHECK(std::equal(expected.begin(), expected.end(), committed.begin() + n));
      accepted_some += accepted > 0 ? 1 : 0;
      bad += draft_is_bad || target_is_bad ? 1 : 0;
    }
  }
  CHECK(accepted_some > 10);
  CHECK(bad > 5);
}

}  // namespace
