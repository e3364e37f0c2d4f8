#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cached_model.h"
#include "draft.h"
#include "executor.h"
#include "row_choices.h"

namespace pard {

// A round put together from Models that run by themselves: draft, one target forward, verify.
class ComposedExecutor final : public RoundExecutor {
 public:
  // No drafter: plain decoding. The target takes prompts `prefill_chunk` tokens a round, so that a
  // long prompt delays the other sequences of the batch by one chunk a round; the draft then takes
  // all of it in one. Throws IncompatibleModels for a draft of another vocabulary, InvalidArgument
  // for one Model in both parts.
  explicit ComposedExecutor(std::shared_ptr<Model> target,
                            std::shared_ptr<Drafter> drafter = nullptr,
                            std::int64_t prefill_chunk = 512);

  const ModelInfo& target_info() const override { return target_.info(); }
  bool can_draft() const override { return drafter_ != nullptr; }
  void launch(std::span<Sequence* const> batch, int num_speculative_tokens) override;
  std::span<const SequenceRound> collect() override;
  void keep(const Sequence& sequence) override;
  void release(SequenceId sequence) noexcept override;
  void check_integrity(const Sequence& sequence) const override;
  RoundTimes times() const override { return times_; }

  const CachedModel& target() const { return target_; }
  const Drafter* drafter() const { return drafter_.get(); }  // null in plain decoding

 private:
  // One sequence's part of the round in flight.
  //
  //   tokens   committed[cached_length : n]  d1 .. dK  (room for one)
  //            num_committed                 num_proposals
  struct Share {
    Sequence* sequence = nullptr;
    std::vector<Token> tokens;
    std::size_t num_committed = 0;
    std::size_t num_proposals = 0;
    bool prefill_chunk = false;  // more of the prompt follows: no rows yet
    std::exception_ptr error;
    LogitsView rows;
    std::size_t first_row = 0;  // of the forward's

    std::span<Token> proposals() { return std::span(tokens).subspan(num_committed, num_proposals); }
    std::span<const Token> input() const {
      return std::span(tokens).first(num_committed + num_proposals);
    }
  };

  void plan(Share& share, Sequence& sequence, int num_speculative_tokens) const;
  void draft();
  void run_target();
  SequenceRound verify_share(Share& share) const;

  std::span<Share> shares() { return std::span(shares_).first(batch_size_); }

  CachedModel target_;
  std::shared_ptr<Drafter> drafter_;
  std::int64_t prefill_chunk_;
  RoundTimes times_;

  // The round in flight. Buffers outlive it: a round of a known batch size allocates nothing.
  std::size_t batch_size_ = 0;
  std::vector<Share> shares_;
  std::vector<DraftRequest> requests_;
  std::vector<Share*> requesting_;
  std::vector<ForwardItem> items_;
  RowChoices choices_;
  std::vector<SequenceRound> rounds_;
};

}  // namespace pard
