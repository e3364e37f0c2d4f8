#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "choose.h"
#include "stats.h"
#include "types.h"

namespace pard {

enum class FinishReason : std::uint8_t {
  eos,        // one of eos_token_ids was committed
  stop,       // one of stop_token_ids was committed, or the observer asked to stop
  length,     // max_new_tokens, or the target's max_length, is reached
  cancelled,  // cancel() was called
};

std::string_view name_of(FinishReason reason);

// When a sequence ends, and how its tokens are chosen. The token that ends it is committed too.
struct GenerationParams {
  SamplingParams sampling{};
  std::int64_t max_new_tokens = 128;  // >= 1
  std::vector<Token> eos_token_ids{};
  std::vector<Token> stop_token_ids{};

  // Throws InvalidArgument naming the first parameter out of its range.
  void validate() const;
};

// The tokens of one request: its prompt, and what has been committed after it.
class Sequence {
 public:
  // `max_length` bounds prompt and generated tokens together. Throws InvalidArgument for a prompt
  // that is empty or leaves no room for a token, and for parameters out of range.
  Sequence(std::vector<Token> prompt, GenerationParams params, std::int64_t max_length);

  SequenceId id() const { return id_; }
  const GenerationParams& params() const { return params_; }

  // All committed tokens, prompt first.
  std::span<const Token> tokens() const { return tokens_; }
  std::span<const Token> generated() const { return tokens().subspan(prompt_length_); }

  // Whether generated()[i] was an accepted proposal, not a correction or bonus token.
  bool from_draft(std::size_t i) const { return from_draft_[i]; }

  // n in the documentation: the position the next token will have.
  std::int64_t length() const { return static_cast<std::int64_t>(tokens_.size()); }

  // How many tokens may still be committed; 0 once finished.
  std::int64_t remaining() const { return finish_reason_ ? 0 : max_length_ - length(); }

  std::optional<FinishReason> finish_reason() const { return finish_reason_; }
  bool finished() const { return finish_reason_.has_value(); }

  const RoundCounts& counts() const { return counts_; }

  // Ends the sequence before its next round. The one member another thread may call.
  void cancel() noexcept { cancel_requested_.store(true, std::memory_order_relaxed); }

 private:
  friend class Decoder;  // commits tokens and finishes; everyone else reads

  void commit(Token token, bool from_draft);
  void finish(FinishReason reason) { finish_reason_ = reason; }
  bool cancel_requested() const { return cancel_requested_.load(std::memory_order_relaxed); }

  SequenceId id_;
  GenerationParams params_;
  std::vector<Token> tokens_;
  std::size_t prompt_length_;
  std::vector<bool> from_draft_;  // one for every generated token
  std::int64_t max_length_;
  std::optional<FinishReason> finish_reason_;
  RoundCounts counts_;
  std::atomic<bool> cancel_requested_{false};
};

}  // namespace pard
