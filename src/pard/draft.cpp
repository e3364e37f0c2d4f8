#include "draft.h"

#include <algorithm>
#include <string>

#include "error.h"
#include "vocabulary.h"

namespace pard {

Drafter::Drafter(std::shared_ptr<Model> model, Token filler, std::int64_t prefill_chunk)
    : model_(std::move(model)),
      filler_(filler),
      prefill_chunk_(prefill_chunk),
      num_proposable_(num_proposable(model_.info(), model_.info())) {
  if (prefill_chunk < 1) {
    throw InvalidArgument({"prefill_chunk is out of range", "at least 1",
                           std::to_string(prefill_chunk), "512 suits most models."});
  }
}

void Drafter::pair_with(const ModelInfo& target) {
  check_compatible(target, info());
  num_proposable_ = std::min(num_proposable_, num_proposable(target, info()));
}

void Drafter::propose(std::span<DraftRequest> batch) {
  for (const DraftRequest& request : batch) catch_up(*request.sequence);
  if (inputs_.size() < batch.size()) inputs_.resize(batch.size());
  propose_caught_up(batch);
}

void Drafter::catch_up(const Sequence& sequence) {
  std::vector<Token> chunk;
  while (sequence.length() - past_length(sequence) > prefill_chunk_) {
    take_uncached(sequence, chunk);
    chunk.resize(static_cast<std::size_t>(prefill_chunk_));
    const std::int64_t past = past_length(sequence);
    const ForwardItem item{sequence.id(), past, chunk, 0};
    model_.forward({&item, 1});
    model_.keep(sequence.id(), past + prefill_chunk_);
  }
}

std::int64_t Drafter::past_length(const Sequence& sequence) const {
  return std::min(model_.cached_length(sequence.id()), sequence.length() - 1);
}

void Drafter::take_uncached(const Sequence& sequence, std::vector<Token>& input) const {
  const auto past = static_cast<std::size_t>(past_length(sequence));
  const std::span<const Token> uncached = sequence.tokens().subspan(past);
  input.assign(uncached.begin(), uncached.end());
  for (Token& token : input) {
    if (token >= info().vocab_size) token = filler_;
  }
}

void Drafter::clear_items() {
  items_.clear();
  choices_.clear();
}

void Drafter::add_item(const Sequence& sequence, std::int64_t past_length,
                       std::span<const Token> input, std::size_t first, std::size_t count) {
  items_.push_back({sequence.id(), past_length, input, static_cast<std::int64_t>(count)});
  for (std::size_t i = first; i < first + count; ++i) {
    choices_.request(sequence.params().sampling, sequence.length() + static_cast<std::int64_t>(i));
  }
}

void Drafter::forward_items() {
  LogitsView logits = model_.forward(items_);
  logits.vocab_size = num_proposable_;
  logits.ids = info().head_tokens.empty() ? nullptr : info().head_tokens.data();
  choices_.take(logits);
}

void Drafter::choose_proposal(DraftRequest& request, std::size_t index, std::size_t row) const {
  if (request.error) return;
  try {
    request.proposals[index] = choices_.at(row);
  } catch (const LogitsError& error) {
    const Sequence& sequence = *request.sequence;
    const std::int64_t position = sequence.length() + static_cast<std::int64_t>(index);
    request.error = std::make_exception_ptr(locate(error, info().name, sequence.id(), position));
  }
}

ParallelDrafter::ParallelDrafter(std::shared_ptr<Model> draft, Token mask_token_id,
                                 std::int64_t prefill_chunk)
    : Drafter(std::move(draft), mask_token_id, prefill_chunk), mask_token_id_(mask_token_id) {
  if (mask_token_id < 0 || mask_token_id >= info().vocab_size) {
    throw IncompatibleModels(
        {"The mask token is not in the embedding of draft '" + info().name + "'",
         "an id in 0.." + std::to_string(info().vocab_size - 1), std::to_string(mask_token_id),
         "Use the mask token the draft was trained with (its config's pard_token)."});
  }
}

void ParallelDrafter::propose_caught_up(std::span<DraftRequest> batch) {
  clear_items();
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const Sequence& sequence = *batch[i].sequence;
    const std::size_t num_proposals = batch[i].proposals.size();
    take_uncached(sequence, inputs_[i]);
    inputs_[i].insert(inputs_[i].end(), num_proposals - 1, mask_token_id_);
    add_item(sequence, past_length(sequence), inputs_[i], 0, num_proposals);
  }
  forward_items();
  std::size_t row = 0;
  for (DraftRequest& request : batch) {
    model_.keep(request.sequence->id(), request.sequence->length());
    for (std::size_t i = 0; i < request.proposals.size(); ++i) {
      choose_proposal(request, i, row++);
    }
  }
}

AutoregressiveDrafter::AutoregressiveDrafter(std::shared_ptr<Model> draft,
                                             std::int64_t prefill_chunk)
    : Drafter(std::move(draft), 0, prefill_chunk) {}

void AutoregressiveDrafter::propose_caught_up(std::span<DraftRequest> batch) {
  for (std::size_t step = 0;; ++step) {
    clear_items();
    requests_.clear();
    for (std::size_t i = 0; i < batch.size(); ++i) {
      DraftRequest& request = batch[i];
      if (step >= request.proposals.size() || request.error) continue;
      const Sequence& sequence = *request.sequence;
      std::int64_t past = past_length(sequence);
      if (step == 0) {
        take_uncached(sequence, inputs_[i]);
      } else {
        inputs_[i].assign(1, request.proposals[step - 1]);
        past = sequence.length() + static_cast<std::int64_t>(step) - 1;
      }
      add_item(sequence, past, inputs_[i], step, 1);
      requests_.push_back(&request);
    }
    if (!has_items()) return;
    forward_items();
    for (std::size_t i = 0; i < requests_.size(); ++i) choose_proposal(*requests_[i], step, i);
  }
}

void AutoregressiveDrafter::keep(const Sequence& sequence) {
  // Rows behind the last round's start hold proposals; those in front of the newest token were
  // accepted.
  model_.keep_at_most(sequence.id(), sequence.length() - 1);
}

}  // namespace pard
