#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "logits.h"
#include "token_bytes.h"
#include "types.h"

namespace pard {

// What a Model is, as far as decoding needs to know.
struct ModelInfo {
  std::string name{};           // for messages
  std::int64_t vocab_size = 0;  // ids 0..vocab_size-1 can be fed
  std::int64_t max_length = 0;  // rows of keys and values one sequence may have

  // Ids the tokenizer knows; rows behind it are padding. Absent: vocab_size.
  std::optional<std::int64_t> num_tokens{};

  // What the ids stand for, to compare a draft with its target. Null: unknown.
  std::shared_ptr<const TokenBytes> token_bytes{};

  // The token of every logit of a row, rising; empty: logit i is token i's. A draft may propose
  // fewer tokens than it reads.
  std::vector<Token> head_tokens{};

  std::int64_t token_count() const { return num_tokens.value_or(vocab_size); }

  // Width of a logits row.
  std::int64_t row_size() const {
    return head_tokens.empty() ? vocab_size : static_cast<std::int64_t>(head_tokens.size());
  }
};

// One sequence's share of a forward.
//
//   KV cache of `sequence`:  [0 ........ past_length)  [past_length ........ past_length +
//   tokens.size())
//                            kept from before           written by this forward
//
// Rows at and past past_length are void: rolling a sequence back is nothing but passing a smaller
// past_length.
struct ForwardItem {
  SequenceId sequence = 0;
  std::int64_t past_length = 0;
  std::span<const Token> tokens{};
  std::int64_t num_rows =
      0;  // logits wanted for the last num_rows of `tokens`; 0: cache only, skip the LM head

  std::int64_t end() const { return past_length + static_cast<std::int64_t>(tokens.size()); }
};

// A causal language model with a KV cache per sequence: an ONNX graph, a PyTorch module, a fake in
// tests.
//
// A Model keeps no lengths: the caller says how many rows of each sequence are good (see
// CachedModel), so that a forward which fails half-way, or writes rows for proposals that are then
// rejected, leaves nothing to undo. Calls come from one thread at a time.
class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelInfo& info() const = 0;

  // Runs `batch` (no sequence twice), writes the keys and values of its tokens, and returns the
  // rows asked for, item after item, in order. A sequence seen for the first time has past_length
  // 0.
  virtual LogitsView forward(std::span<const ForwardItem> batch) = 0;

  // Frees what is kept for a sequence; unknown ids are ignored.
  virtual void release(SequenceId sequence) noexcept = 0;
};

}  // namespace pard
