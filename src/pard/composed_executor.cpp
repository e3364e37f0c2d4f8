#include "composed_executor.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "error.h"
#include "stopwatch.h"
#include "verify.h"

namespace pard {

ComposedExecutor::ComposedExecutor(std::shared_ptr<Model> target, std::shared_ptr<Drafter> drafter,
                                   std::int64_t prefill_chunk)
    : target_(target), drafter_(std::move(drafter)), prefill_chunk_(prefill_chunk) {
  if (prefill_chunk < 1) {
    throw InvalidArgument({"prefill_chunk is out of range", "at least 1",
                           std::to_string(prefill_chunk), "512 suits most models."});
  }
  if (!target_.info().head_tokens.empty()) {
    throw IncompatibleModels(
        {"Model '" + target_.info().name + "' cannot be a target", "logits of all its tokens",
         "logits of " + std::to_string(target_.info().head_tokens.size()) + " of them",
         "Use it as a draft, or export it without --head-tokens."});
  }
  if (!drafter_) return;
  if (drafter_->model().is(target.get())) {
    throw InvalidArgument({"One Model is both target and draft",
                           "two Models, each with its own KV cache",
                           "'" + target_.info().name + "' twice", "Open the model a second time."});
  }
  drafter_->pair_with(target_.info());
}

void ComposedExecutor::launch(std::span<Sequence* const> batch, int num_speculative_tokens) {
  if (shares_.size() < batch.size()) shares_.resize(batch.size());
  batch_size_ = batch.size();
  for (std::size_t i = 0; i < batch.size(); ++i) {
    plan(shares_[i], *batch[i], num_speculative_tokens);
  }
  {
    const Stopwatch stopwatch(times_.draft);
    draft();
  }
  const Stopwatch stopwatch(times_.target);
  run_target();
}

void ComposedExecutor::plan(Share& share, Sequence& sequence, int num_speculative_tokens) const {
  const std::int64_t cached = target_.cached_length(sequence.id());
  const std::int64_t uncached = sequence.length() - cached;
  share.sequence = &sequence;
  share.error = nullptr;
  share.prefill_chunk = uncached > prefill_chunk_;
  share.num_committed = static_cast<std::size_t>(std::min(uncached, prefill_chunk_));

  // The first token comes from the end of the prefill, before the draft has seen anything; and the
  // round's last token needs no proposal.
  std::int64_t num_proposals = 0;
  if (drafter_ && uncached == 1) {
    num_proposals = std::min({static_cast<std::int64_t>(num_speculative_tokens),
                              sequence.remaining() - 1, drafter_->max_proposals(sequence)});
  }
  share.num_proposals = static_cast<std::size_t>(std::max<std::int64_t>(num_proposals, 0));

  const auto first = sequence.tokens().begin() + cached;
  share.tokens.assign(first, first + static_cast<std::int64_t>(share.num_committed));
  share.tokens.resize(share.num_committed + share.num_proposals + 1);
}

void ComposedExecutor::draft() {
  requests_.clear();
  requesting_.clear();
  for (Share& share : shares()) {
    if (share.num_proposals == 0) continue;
    requests_.push_back({share.sequence, share.proposals(), nullptr});
    requesting_.push_back(&share);
  }
  if (requests_.empty()) return;
  drafter_->propose(requests_);
  for (std::size_t i = 0; i < requests_.size(); ++i) requesting_[i]->error = requests_[i].error;
}

void ComposedExecutor::run_target() {
  items_.clear();
  choices_.clear();
  for (const Share& share : shares()) {
    if (share.error) continue;
    const Sequence& sequence = *share.sequence;
    const std::int64_t num_rows =
        share.prefill_chunk ? 0 : static_cast<std::int64_t>(share.num_proposals) + 1;
    items_.push_back(
        {sequence.id(), target_.cached_length(sequence.id()), share.input(), num_rows});
    for (std::int64_t i = 0; i < num_rows; ++i) {
      choices_.request(sequence.params().sampling, sequence.length() + i);
    }
  }
  if (items_.empty()) return;
  const LogitsView logits = target_.forward(items_);
  std::int64_t row = 0;
  auto item = items_.begin();
  for (Share& share : shares()) {
    if (share.error) continue;
    share.rows = logits.rows(row, item->num_rows);
    share.first_row = static_cast<std::size_t>(row);
    row += item->num_rows;
    if (share.prefill_chunk) {
      target_.keep(item->sequence, item->end());
    }
    ++item;
  }
  choices_.take(logits);
}

std::span<const SequenceRound> ComposedExecutor::collect() {
  const Stopwatch stopwatch(times_.target);
  rounds_.clear();
  for (Share& share : shares()) rounds_.push_back(verify_share(share));
  return rounds_;
}

SequenceRound ComposedExecutor::verify_share(Share& share) const {
  SequenceRound round;
  round.error = share.error;
  if (share.error || share.prefill_chunk) return round;

  const Sequence& sequence = *share.sequence;
  const std::span<Token> proposals = share.proposals();
  std::size_t num_chosen = 0;
  Verdict verdict;
  try {
    verdict = verify(proposals, [&](int i) {
      const Token choice = choices_.at(share.first_row + static_cast<std::size_t>(i));
      ++num_chosen;
      return choice;
    });
  } catch (const LogitsError& error) {
    if (num_chosen == 0) {
      round.error = std::make_exception_ptr(
          locate(error, target_.info().name, sequence.id(), sequence.length()));
      return round;
    }
    // The rows before the bad one stand, as they would in plain decoding; the next round meets it
    // first.
    verdict = {static_cast<int>(num_chosen) - 1, proposals[num_chosen - 1]};
  }
  round.num_proposals = static_cast<int>(share.num_proposals);
  round.num_accepted = verdict.num_accepted;
  const auto accepted = static_cast<std::size_t>(verdict.num_accepted);
  share.tokens[share.num_committed + accepted] = verdict.next_token;
  round.tokens = std::span(share.tokens).subspan(share.num_committed, accepted + 1);
  round.rows = share.rows;
  return round;
}

void ComposedExecutor::keep(const Sequence& sequence) {
  target_.keep(sequence.id(), sequence.length() - 1);
  if (drafter_) drafter_->keep(sequence);
}

void ComposedExecutor::release(SequenceId sequence) noexcept {
  target_.release(sequence);
  if (drafter_) drafter_->release(sequence);
}

void ComposedExecutor::check_integrity(const Sequence& sequence) const {
  const auto check = [&](const char* part, const CachedModel& model, std::int64_t most) {
    const std::int64_t cached = model.cached_length(sequence.id());
    if (cached < 0 || cached > most) {
      throw std::logic_error(std::string(part) + " has cached " + std::to_string(cached) +
                             " rows of a sequence of " + std::to_string(sequence.length()));
    }
  };
  check("The target", target_, sequence.length() - 1);
  if (drafter_) check("The draft", drafter_->model(), sequence.length());
}

}  // namespace pard
