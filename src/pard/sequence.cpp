#include "sequence.h"

#include <algorithm>
#include <string>

#include "error.h"

namespace pard {

namespace {

SequenceId next_id() {
  static std::atomic<SequenceId> counter{0};
  return counter.fetch_add(1, std::memory_order_relaxed) + 1;
}

bool contains(const std::vector<Token>& ids, Token token) {
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

}  // namespace

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::eos:
      return "eos";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
  }
  return "unknown";
}

void GenerationParams::validate() const {
  sampling.validate();
  if (max_new_tokens < 1) {
    throw InvalidArgument({"max_new_tokens is out of range", "at least 1",
                           std::to_string(max_new_tokens), "Ask for at least one token."});
  }
}

Sequence::Sequence(std::vector<Token> prompt, GenerationParams params, std::int64_t max_length)
    : id_(next_id()),
      params_(std::move(params)),
      tokens_(std::move(prompt)),
      prompt_length_(tokens_.size()) {
  params_.validate();
  if (tokens_.empty()) {
    throw InvalidArgument({"The prompt is empty", "at least 1 token", "0 tokens",
                           "Start with the model's beginning-of-sequence token."});
  }
  if (length() >= max_length) {
    throw InvalidArgument({"The prompt is too long",
                           "at most " + std::to_string(max_length - 1) + " tokens",
                           std::to_string(length()) + " tokens",
                           "Shorten the prompt, or open the model with a larger max_length."});
  }
  max_length_ = length() + std::min(params_.max_new_tokens, max_length - length());
}

void Sequence::commit(Token token, bool from_draft) {
  tokens_.push_back(token);
  from_draft_.push_back(from_draft);
  if (contains(params_.eos_token_ids, token)) {
    finish(FinishReason::eos);
  } else if (contains(params_.stop_token_ids, token)) {
    finish(FinishReason::stop);
  } else if (length() == max_length_) {
    finish(FinishReason::length);
  }
}

}  // namespace pard
