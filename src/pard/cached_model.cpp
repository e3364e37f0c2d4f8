#include "cached_model.h"

#include <algorithm>
#include <cassert>
#include <exception>
#include <functional>
#include <string>

#include "choose.h"
#include "error.h"

namespace pard {

namespace {

void check_head(const ModelInfo& info) {
  const std::vector<Token>& head = info.head_tokens;
  const auto falls = std::ranges::adjacent_find(head, std::greater_equal<>());
  if (falls == head.end() && (head.empty() || (head.front() >= 0 && head.back() < info.vocab_size)))
    return;
  throw ModelError({"Model '" + info.name + "' has unusable head_tokens",
                    "rising ids in 0.." + std::to_string(info.vocab_size - 1),
                    falls == head.end()
                        ? std::to_string(head.front()) + " to " + std::to_string(head.back())
                        : std::to_string(falls[1]) + " after " + std::to_string(falls[0]),
                    "Correct what its info() reports."});
}

void check_info(const ModelInfo& info) {
  const auto positive = [&](const char* field, std::int64_t value) {
    if (value < 1) {
      throw ModelError({"Model '" + info.name + "' has no usable " + field, "at least 1",
                        std::to_string(value), "Correct what its info() reports."});
    }
  };
  positive("vocab_size", info.vocab_size);
  positive("max_length", info.max_length);
  positive("num_tokens", info.token_count());
  if (info.vocab_size > max_vocab_size) {
    throw ModelError({"Model '" + info.name + "' has too large a vocabulary",
                      "at most " + std::to_string(max_vocab_size), std::to_string(info.vocab_size),
                      "Correct what its info() reports."});
  }
  if (info.token_count() > info.vocab_size) {
    throw ModelError({"Model '" + info.name + "' knows more tokens than its rows hold",
                      "num_tokens <= vocab_size = " + std::to_string(info.vocab_size),
                      std::to_string(info.token_count()), "Correct what its info() reports."});
  }
  check_head(info);
}

void check_logits(const ModelInfo& info, const LogitsView& logits, std::int64_t num_rows) {
  const bool rows_apart = num_rows < 2 || logits.row_stride >= info.row_size();
  if (logits.num_rows == num_rows && logits.vocab_size == info.row_size() && rows_apart &&
      logits.data != nullptr) {
    return;
  }
  throw ModelError(
      {"Model '" + info.name + "' returned logits of the wrong shape",
       "[" + std::to_string(num_rows) + ", " + std::to_string(info.row_size()) + "]",
       "[" + std::to_string(logits.num_rows) + ", " + std::to_string(logits.vocab_size) +
           "], rows " + std::to_string(logits.row_stride) + " apart",
       "forward() returns the last num_rows rows of each item, in the batch's order."});
}

}  // namespace

LogitsError locate(const LogitsError& error, const std::string& model, SequenceId sequence,
                   std::int64_t position) {
  ErrorDetail detail = error.detail();
  detail.problem += ": model '" + model + "', sequence " + std::to_string(sequence) +
                    ", position " + std::to_string(position);
  detail.remedy += " Cancel the sequence where it cannot go on; others do.";
  return LogitsError(std::move(detail));
}

CachedModel::CachedModel(std::shared_ptr<Model> model) : model_(std::move(model)) {
  if (!model_) {
    throw InvalidArgument({"No model was given", "a Model", "null", "Pass an open model."});
  }
  info_ = model_->info();
  check_info(info_);
}

std::int64_t CachedModel::cached_length(SequenceId sequence) const {
  const auto found = lengths_.find(sequence);
  return found == lengths_.end() ? 0 : found->second.kept;
}

LogitsView CachedModel::forward(std::span<const ForwardItem> batch) {
  std::int64_t num_rows = 0;
  for (const ForwardItem& item : batch) {
    Lengths& lengths = lengths_[item.sequence];
    assert(item.past_length <= lengths.written);
    assert(!item.tokens.empty() && item.end() <= info_.max_length);
    assert(item.num_rows <= static_cast<std::int64_t>(item.tokens.size()));
    num_rows += item.num_rows;
    lengths.kept = std::min(lengths.kept, item.past_length);
    lengths.written = item.past_length;  // until the forward has returned
  }
  LogitsView logits;
  try {
    logits = model_->forward(batch);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& cause) {
    std::throw_with_nested(
        ModelError({"Model '" + info_.name + "' failed in forward()", "logits", cause.what(),
                    "The round changed nothing. Resolve what the model reports, then try again."}));
  }
  if (num_rows == 0) {
    logits = {};
  } else {
    check_logits(info_, logits, num_rows);
  }
  for (const ForwardItem& item : batch) {
    lengths_[item.sequence].written = item.end();
  }
  return logits;
}

void CachedModel::keep(SequenceId sequence, std::int64_t length) {
  Lengths& lengths = lengths_[sequence];
  assert(length <= lengths.written);
  lengths = {length, length};
}

void CachedModel::keep_at_most(SequenceId sequence, std::int64_t length) {
  keep(sequence, std::min(length, lengths_[sequence].written));
}

void CachedModel::release(SequenceId sequence) noexcept {
  lengths_.erase(sequence);
  model_->release(sequence);
}

}  // namespace pard
