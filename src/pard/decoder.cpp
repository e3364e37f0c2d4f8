#include "decoder.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "error.h"
#include "stopwatch.h"

namespace pard {

namespace {

void check_token_ids(const char* what, const std::vector<Token>& ids, const ModelInfo& model) {
  const auto bad = std::find_if(
      ids.begin(), ids.end(), [&](Token token) { return token < 0 || token >= model.vocab_size; });
  if (bad == ids.end()) return;
  throw InvalidArgument({std::string(what) + "[" + std::to_string(bad - ids.begin()) +
                             "] is not a token of '" + model.name + "'",
                         "an id in 0.." + std::to_string(model.vocab_size - 1),
                         std::to_string(*bad), "Use ids of the target's own tokenizer."});
}

// Refuses rounds that break RoundExecutor's contract, before anything of them is believed.
void check_rounds(std::span<const SequenceRound> rounds, std::size_t batch_size, int most,
                  std::int64_t vocab_size) {
  const auto fail = [](std::string expected, std::string actual) {
    throw ModelError({"A RoundExecutor broke its contract", std::move(expected), std::move(actual),
                      "Return what the round over the batch of launch() yielded."});
  };
  if (rounds.size() != batch_size) {
    fail(std::to_string(batch_size) + " rounds", std::to_string(rounds.size()));
  }
  for (const SequenceRound& round : rounds) {
    if (round.error) continue;
    if (round.num_accepted < 0 || round.num_accepted > round.num_proposals ||
        round.num_proposals > most) {
      fail("0 <= num_accepted <= num_proposals <= " + std::to_string(most),
           std::to_string(round.num_accepted) + " of " + std::to_string(round.num_proposals));
    }
    const auto num_tokens = static_cast<std::size_t>(round.num_accepted) + 1;
    if (!round.tokens.empty() && round.tokens.size() != num_tokens) {
      fail("num_accepted + 1 tokens, or none", std::to_string(round.tokens.size()));
    }
    for (const Token token : round.tokens) {
      if (token < 0 || token >= vocab_size) {
        fail("tokens in 0.." + std::to_string(vocab_size - 1), std::to_string(token));
      }
    }
  }
}

// Refuses a round inside a round: an observer, a Model or another thread that calls step().
class InRound {
 public:
  explicit InRound(std::atomic_flag& flag) : flag_(flag) {
    if (flag_.test_and_set()) {
      throw InvalidArgument({"step() was called while a round is in flight", "one round at a time",
                             "a second one",
                             "Step from one thread, and not from an observer or a "
                             "Model; add() new work there instead."});
    }
  }
  ~InRound() { flag_.clear(); }
  InRound(const InRound&) = delete;
  InRound& operator=(const InRound&) = delete;

 private:
  std::atomic_flag& flag_;
};

}  // namespace

bool Decoder::step() {
  const InRound in_round(in_round_);
  const Stopwatch stopwatch(wall_);
  admit();
  if (active_.empty()) return false;
  choose_k();

  const bool decoding = adaptive_k_ && all_decoding();
  const auto start = std::chrono::steady_clock::now();
  executor_->launch(batch_, adaptive_k_ ? adaptive_k_->next() : num_speculative_tokens_);
  const std::span<const SequenceRound> rounds = executor_->collect();
  check_rounds(rounds, batch_.size(), max_speculative_tokens, vocab_size_);
  if (decoding) adaptive_k_->add_round(rounds, std::chrono::steady_clock::now() - start);

  std::exception_ptr error;
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    try {
      publish(active_[i], rounds[i]);
    } catch (...) {
      if (!error) error = std::current_exception();
    }
  }
  retire_finished();
  if (error) std::rethrow_exception(error);
  return !active_.empty() || !waiting_.empty();
}

// A K that was set during a round counts from the next one on.
void Decoder::choose_k() {
  if (!is_adaptive_ || num_speculative_tokens_ == 0) {
    adaptive_k_.reset();
  } else if (!adaptive_k_ || adaptive_k_->most() != num_speculative_tokens_) {
    adaptive_k_.emplace(num_speculative_tokens_);
  }
}

// Whether every sequence's prompt lies behind it, in the draft's cache as well.
bool Decoder::all_decoding() const {
  return std::all_of(batch_.begin(), batch_.end(),
                     [](const Sequence* sequence) { return sequence->counts().rounds >= 2; });
}

void Decoder::publish(Request& request, const SequenceRound& round) {
  if (round.error) std::rethrow_exception(round.error);
  if (round.tokens.empty()) return;
  Sequence& sequence = *request.sequence;
  const std::int64_t length = sequence.length();
  std::exception_ptr observer_error;
  try {
    commit_tokens(request, round);
  } catch (...) {
    observer_error = std::current_exception();
  }
  const std::int64_t num_committed = sequence.length() - length;
  executor_->keep(sequence);
  sequence.counts_.add_round(round.num_proposals, round.num_accepted, num_committed);
  counts_.add_round(round.num_proposals, round.num_accepted, num_committed);
  if (observer_error) std::rethrow_exception(observer_error);
}

void Decoder::commit_tokens(Request& request, const SequenceRound& round) {
  Sequence& sequence = *request.sequence;
  for (std::size_t i = 0; i < round.tokens.size() && !sequence.finished(); ++i) {
    const bool from_draft = i < static_cast<std::size_t>(round.num_accepted);
    sequence.commit(round.tokens[i], from_draft);
    if (!request.observer) continue;
    const LogitsRow row =
        round.rows.data ? round.rows.row(static_cast<std::int64_t>(i)) : LogitsRow{};
    const bool go_on = request.observer({sequence, round.tokens[i], from_draft, row});
    if (!go_on && !sequence.finished()) sequence.finish(FinishReason::stop);
  }
}

Decoder::Decoder(std::unique_ptr<RoundExecutor> executor, DecoderOptions options)
    : executor_(std::move(executor)),
      max_batch_size_(options.max_batch_size),
      is_adaptive_(options.adaptive) {
  if (max_batch_size_ < 1) {
    throw InvalidArgument(
        {"max_batch_size is out of range", "at least 1", "0", "Leave it at its default of 16."});
  }
  if (!executor_) {
    throw InvalidArgument(
        {"A Decoder needs an executor", "a RoundExecutor, or a target Model", "none", "Pass one."});
  }
  vocab_size_ = executor_->target_info().vocab_size;
  set_num_speculative_tokens(
      options.num_speculative_tokens.value_or(executor_->can_draft() ? 8 : 0));
}

Decoder::~Decoder() {
  for (const Request& request : active_) executor_->release(request.sequence->id());
}

void Decoder::set_num_speculative_tokens(int num_speculative_tokens) {
  if (num_speculative_tokens < 0 || num_speculative_tokens > max_speculative_tokens) {
    throw InvalidArgument(
        {"num_speculative_tokens is out of range", "0.." + std::to_string(max_speculative_tokens),
         std::to_string(num_speculative_tokens), "4 to 12 suit most pairs; 0 is plain decoding."});
  }
  if (num_speculative_tokens > 0 && !executor_->can_draft()) {
    throw InvalidArgument({"Speculation needs a draft", "a drafter, or num_speculative_tokens = 0",
                           "no drafter and " + std::to_string(num_speculative_tokens),
                           "Pass a drafter."});
  }
  num_speculative_tokens_ = num_speculative_tokens;
}

std::shared_ptr<Sequence> Decoder::add(std::vector<Token> prompt, GenerationParams params,
                                       TokenObserver observer) {
  const ModelInfo& target = executor_->target_info();
  check_token_ids("prompt", prompt, target);
  check_token_ids("eos_token_ids", params.eos_token_ids, target);
  check_token_ids("stop_token_ids", params.stop_token_ids, target);
  auto sequence =
      std::make_shared<Sequence>(std::move(prompt), std::move(params), target.max_length);
  waiting_.push_back({sequence, std::move(observer)});
  return sequence;
}

void Decoder::admit() {
  const auto finish_if_cancelled = [](const Request& request) {
    if (request.sequence->cancel_requested()) request.sequence->finish(FinishReason::cancelled);
    return request.sequence->finished();
  };
  for (const Request& request : active_) finish_if_cancelled(request);
  retire_finished();
  std::erase_if(waiting_, finish_if_cancelled);
  while (active_.size() < max_batch_size_ && !waiting_.empty()) {
    active_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  batch_.clear();
  for (const Request& request : active_) batch_.push_back(request.sequence.get());
}

void Decoder::retire_finished() {
  std::erase_if(active_, [&](const Request& request) {
    if (!request.sequence->finished()) {
#ifndef NDEBUG
      executor_->check_integrity(*request.sequence);
#endif
      return false;
    }
    executor_->release(request.sequence->id());
    return true;
  });
}

RoundTimes Decoder::times() const {
  RoundTimes times = executor_->times();
  times.wall = wall_;
  return times;
}

}  // namespace pard
