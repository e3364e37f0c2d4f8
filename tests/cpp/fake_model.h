#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "pard/choose.h"
#include "pard/error.h"
#include "pard/logits_device.h"
#include "pard/model.h"

namespace pard::test {

inline std::uint64_t mix(std::uint64_t x) {  // splitmix64's finalizer: any bit moves every bit
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// A made-up language: the next token's logits depend on every token before it, so that one stale
// row in a cache changes all that follows.
class FakeLanguage {
 public:
  using State = std::uint64_t;

  explicit FakeLanguage(int vocab_size, std::uint64_t salt = 1)
      : vocab_size_(vocab_size), salt_(salt) {}

  int vocab_size() const { return vocab_size_; }
  State start() const { return mix(salt_); }
  static State next(State state, Token token) {
    return mix(state * 3 + static_cast<std::uint64_t>(token) + 1);
  }
  State after(std::span<const Token> tokens) const {
    State state = start();
    for (const Token token : tokens) state = next(state, token);
    return state;
  }

  float logit(State state, Token token) const {
    const std::uint64_t bits =
        mix(state ^ (static_cast<std::uint64_t>(token + 1) * 0x9e3779b97f4a7c15ULL));
    return static_cast<float>(bits >> 40) * (6.0F / (1 << 24));  // [0, 6)
  }

  std::vector<float> row(State state) const {
    std::vector<float> logits(static_cast<std::size_t>(vocab_size_));
    for (Token token = 0; token < vocab_size_; ++token) {
      logits[static_cast<std::size_t>(token)] = logit(state, token);
    }
    return logits;
  }

  Token greedy(State state) const {
    Token best = 0;
    for (Token token = 1; token < vocab_size_; ++token) {
      if (logit(state, token) > logit(state, best)) best = token;
    }
    return best;
  }

 private:
  int vocab_size_;
  std::uint64_t salt_;
};

// A device whose memory makes no sense to the host: every bit in it is turned over.
class FakeDevice final : public LogitsDevice {
 public:
  void choose(const LogitsView& rows, std::span<const RowRequest> requests,
              std::span<std::optional<Token>> tokens) const override {
    if (choices_until_failure && *choices_until_failure == 0) {
      choices_until_failure.reset();
      throw ModelError({"The device did not choose", "tokens", "nothing", "Try again."});
    }
    if (choices_until_failure) --*choices_until_failure;
    std::vector<float> row(static_cast<std::size_t>(rows.vocab_size));
    for (std::size_t i = 0; i < requests.size(); ++i) {
      read(row.data(), rows.row(static_cast<std::int64_t>(i)).data, row.size() * sizeof(float));
      try {
        tokens[i] = pard::choose({row.data(), DType::f32, rows.vocab_size}, *requests[i].sampling,
                                 requests[i].position);
      } catch (const LogitsError&) {
        tokens[i] = std::nullopt;
      }
    }
    num_chosen += static_cast<int>(requests.size());
  }

  void read(void* to, const void* from, std::size_t bytes) const override {
    const auto* in = static_cast<const unsigned char*>(from);
    std::transform(in, in + bytes, static_cast<unsigned char*>(to),
                   [](unsigned char byte) { return static_cast<unsigned char>(~byte); });
  }

  mutable int num_chosen = 0;
  mutable std::optional<int> choices_until_failure;  // 0: the next choice throws
};

// How a fake model's rows relate to its language's.
enum class Manner {
  faithful,  // the language's own rows: a perfect draft, or a target
  mixed,     // right at most states, wrong at the others
  random,    // another language's rows
  hostile,   // the language's rows upside down
};

// A Model over FakeLanguage. Its cache holds what each position was computed from, so a test can
// compare it with a fresh prefill. Fed `mask_token_id`, it goes on from its own likeliest token, as
// a perfect parallel draft would.
class FakeModel : public Model {
 public:
  struct Options {
    Manner manner = Manner::faithful;
    std::optional<Token> mask_token_id{};
    int padding = 0;  // rows behind the vocabulary, with the highest logits of all
    std::int64_t max_length = 1 << 20;
  };

  FakeModel(FakeLanguage language, Options options)
      : language_(language), other_(language.vocab_size(), 99), options_(options) {
    info_.name = "fake";
    info_.vocab_size = language.vocab_size() + options.padding;
    info_.num_tokens = language.vocab_size();
    info_.max_length = options.max_length;
  }
  explicit FakeModel(FakeLanguage language) : FakeModel(language, Options{}) {}

  const ModelInfo& info() const override { return info_; }

  LogitsView forward(std::span<const ForwardItem> batch) override {
    ++num_forwards;
    rows_.clear();
    std::int64_t num_rows = 0;
    for (const ForwardItem& item : batch) {
      auto& cache = caches_[item.sequence];
      const auto past = static_cast<std::size_t>(item.past_length);
      if (cache.size() < past) throw std::logic_error("past_length reaches behind the cache");
      if (past + item.tokens.size() > static_cast<std::size_t>(options_.max_length)) {
        throw std::logic_error("the cache is full");
      }
      // Stale rows stay where they are, as in a real buffer; only [0, past) may be read.
      if (cache.size() < past + item.tokens.size()) cache.resize(past + item.tokens.size());
      auto state = past == 0 ? language_.start() : cache[past - 1];
      for (std::size_t i = 0; i < item.tokens.size(); ++i) {
        const Token token = item.tokens[i];
        if (token < 0 || token >= info_.vocab_size) throw std::logic_error("token out of range");
        const bool is_mask = token == options_.mask_token_id;
        state = FakeLanguage::next(state, is_mask ? language_.greedy(state) : token);
        cache[past + i] = state;
        if (i + static_cast<std::size_t>(item.num_rows) >= item.tokens.size()) {
          write_row(state, item.past_length + static_cast<std::int64_t>(i));
        }
      }
      num_rows += item.num_rows;
      if (forwards_until_failure && *forwards_until_failure == 0) {  // half-way, rows half written
        forwards_until_failure.reset();
        for (std::size_t i = 0; i < item.tokens.size(); ++i) cache[past + i] ^= 1;
        throw std::runtime_error("the device fell off the bus");
      }
    }
    if (forwards_until_failure) --*forwards_until_failure;
    if (device) device->read(rows_.data(), rows_.data(), rows_.size() * sizeof(float));
    return {rows_.data(), DType::f32, num_rows, info_.vocab_size, info_.vocab_size, device.get()};
  }

  void release(SequenceId sequence) noexcept override { caches_.erase(sequence); }

  // Whether rows [0, length) of `sequence` are those of a fresh prefill of `tokens`.
  bool cache_equals_fresh_prefill(SequenceId sequence, std::span<const Token> tokens,
                                  std::int64_t length) const {
    if (length == 0) return true;
    const auto found = caches_.find(sequence);
    if (found == caches_.end() || found->second.size() < static_cast<std::size_t>(length))
      return false;
    auto state = language_.start();
    for (std::size_t i = 0; i < static_cast<std::size_t>(length); ++i) {
      state = FakeLanguage::next(state, tokens[i]);
      if (found->second[i] != state) return false;
    }
    return true;
  }

  std::size_t num_caches() const { return caches_.size(); }

  int num_forwards = 0;
  std::shared_ptr<FakeDevice> device;             // where the rows lie; null: in the host's memory
  std::optional<int> forwards_until_failure;      // 0: the next forward throws
  std::optional<std::int64_t> poisoned_position;  // the row of the token at this position is NaN

 private:
  void write_row(FakeLanguage::State state, std::int64_t position) {
    const auto vocab_size = static_cast<Token>(language_.vocab_size());
    const bool wrong = options_.manner == Manner::random ||
                       (options_.manner == Manner::mixed && mix(state) % 4 == 0);
    for (Token token = 0; token < info_.vocab_size; ++token) {
      float logit = token >= vocab_size ? 100.0F
                    : wrong             ? other_.logit(state, token)
                                        : language_.logit(state, token);
      if (options_.manner == Manner::hostile) logit = -logit;
      if (poisoned_position == position) logit = std::numeric_limits<float>::quiet_NaN();
      rows_.push_back(logit);
    }
  }

  FakeLanguage language_;
  FakeLanguage other_;
  Options options_;
  ModelInfo info_;
  std::unordered_map<SequenceId, std::vector<FakeLanguage::State>> caches_;
  std::vector<float> rows_;
};

// What plain decoding emits, computed from the language itself: no Model, no cache, no Decoder.
inline std::vector<Token> decode_plainly(const FakeLanguage& language, std::vector<Token> tokens,
                                         const SamplingParams& params, int count) {
  std::vector<Token> generated;
  for (int i = 0; i < count; ++i) {
    const std::vector<float> row = language.row(language.after(tokens));
    const Token token = choose({row.data(), DType::f32, language.vocab_size()}, params,
                               static_cast<std::int64_t>(tokens.size()));
    tokens.push_back(token);
    generated.push_back(token);
  }
  return generated;
}

}  // namespace pard::test
