#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "adaptive_k.h"
#include "executor.h"
#include "sequence.h"
#include "stats.h"

namespace pard {

// A token that has just been committed: sequence.tokens().back().
struct TokenEvent {
  const Sequence& sequence;
  Token token;
  bool from_draft;  // an accepted proposal, rather than a correction or bonus token
  LogitsRow row;    // what it was chosen from (log_probability reads it); borrowed for the call
};

// Sees every committed token of its sequence, in order. False ends the sequence with
// FinishReason::stop.
using TokenObserver = std::function<bool(const TokenEvent&)>;

struct DecoderOptions {
  std::optional<int> num_speculative_tokens{};  // K, 0..64; absent: 8 with a drafter, 0 without
  std::size_t max_batch_size = 16;              // sequences decoded at a time; others wait
  bool adaptive = false;                        // K or fewer, down to 0: see AdaptiveK
};

// Decodes sequences together, round by round; they join and leave between rounds.
class Decoder {
 public:
  static constexpr int max_speculative_tokens = 64;

  // Throws InvalidArgument for options out of range, or no executor.
  explicit Decoder(std::unique_ptr<RoundExecutor> executor, DecoderOptions options = {});
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Queues a request. Throws InvalidArgument for a prompt or parameters that cannot be decoded.
  std::shared_ptr<Sequence> add(std::vector<Token> prompt, GenerationParams params = {},
                                TokenObserver observer = {});

  // Runs one round; true while there is more to do.
  //
  // Throws what a Model or an observer threw. Every sequence then stands at its last committed
  // token, the others' tokens of this round included, and step() may be called again: cancel a
  // sequence that cannot go on.
  bool step();

  // Steps until every sequence has finished.
  void run() {
    while (step()) {
    }
  }

  const RoundExecutor& executor() const { return *executor_; }
  int num_speculative_tokens() const { return num_speculative_tokens_; }

  // K, or the most it may be, from the next round on. Throws InvalidArgument as the constructor
  // does.
  void set_num_speculative_tokens(int num_speculative_tokens);

  std::size_t num_active() const { return active_.size(); }
  std::size_t num_waiting() const { return waiting_.size(); }

  // Totals over all sequences, finished ones included.
  const RoundCounts& counts() const { return counts_; }
  RoundTimes times() const;

 private:
  struct Request {
    std::shared_ptr<Sequence> sequence;
    TokenObserver observer;
  };

  void choose_k();
  bool all_decoding() const;
  void admit();
  void publish(Request& request, const SequenceRound& round);
  void commit_tokens(Request& request, const SequenceRound& round);
  void retire_finished();

  std::unique_ptr<RoundExecutor> executor_;
  std::int64_t vocab_size_ = 0;
  int num_speculative_tokens_ = 0;
  std::size_t max_batch_size_;
  bool is_adaptive_;
  std::optional<AdaptiveK> adaptive_k_;
  std::deque<Request> waiting_;
  std::vector<Request> active_;
  std::vector<Sequence*> batch_;
  RoundCounts counts_;
  Duration wall_{};
  std::atomic_flag in_round_{};
};

}  // namespace pard
