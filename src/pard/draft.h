#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "cached_model.h"
#include "row_choices.h"
#include "sequence.h"
#include "types.h"

namespace pard {

// Room for the proposals of one sequence; its size says how many are wanted (at least one).
struct DraftRequest {
  const Sequence* sequence = nullptr;
  std::span<Token> proposals;
  std::exception_ptr
      error;  // set where the draft's rows allow no choice; the proposals are then void
};

// Proposes the tokens that may follow a sequence. Proposals are chosen from the draft's rows by the
// same rule and the same noise as the target's tokens (see choose).
class Drafter {
 public:
  virtual ~Drafter() = default;
  Drafter(const Drafter&) = delete;
  Drafter& operator=(const Drafter&) = delete;

  const CachedModel& model() const { return model_; }

  // Says whose tokens are proposed; more than one target may. Throws IncompatibleModels as
  // check_compatible() does.
  void pair_with(const ModelInfo& target);

  // How many proposals the draft's cache has room for; 0 or less: none.
  std::int64_t max_proposals(const Sequence& sequence) const {
    return info().max_length - sequence.length() + 1;
  }

  // Fills every request. A sequence the draft has not seen for some rounds is caught up first, in
  // chunks.
  void propose(std::span<DraftRequest> batch);

  // Called once a round's tokens are committed: what the draft ran that was accepted stays cached.
  virtual void keep(const Sequence& sequence) = 0;

  void release(SequenceId sequence) noexcept { model_.release(sequence); }

 protected:
  // `filler` stands in for committed ids outside the draft's embedding: tokens that only the target
  // has, or its padding rows.
  Drafter(std::shared_ptr<Model> model, Token filler, std::int64_t prefill_chunk);

  const ModelInfo& info() const { return model_.info(); }
  std::int64_t prefill_chunk() const { return prefill_chunk_; }

  virtual void propose_caught_up(std::span<DraftRequest> batch) = 0;

  // Where the next input of `sequence` starts: behind what is cached, the newest token always
  // included (a round that failed after its draft ran leaves that one cached as well).
  std::int64_t past_length(const Sequence& sequence) const;

  // Writes committed[past_length : n] to `input`.
  void take_uncached(const Sequence& sequence, std::vector<Token>& input) const;

  // The draft's forward is put together item by item. The last `count` rows of an item are the
  // sequence's proposals from `first` on.
  void clear_items();
  void add_item(const Sequence& sequence, std::int64_t past_length, std::span<const Token> input,
                std::size_t first, std::size_t count);
  bool has_items() const { return !items_.empty(); }
  void forward_items();

  // Takes proposals[index] from a row of that forward.
  void choose_proposal(DraftRequest& request, std::size_t index, std::size_t row) const;

  CachedModel model_;
  std::vector<std::vector<Token>> inputs_;  // per request; reused from round to round

 private:
  void catch_up(const Sequence& sequence);

  std::vector<ForwardItem> items_;
  RowChoices choices_;

  Token filler_;
  std::int64_t prefill_chunk_;
  std::int64_t num_proposable_;  // over all targets: see num_proposable()
};

// PARD: all K proposals in one forward.
//
//   input   committed[past_length : n]  mask_1 .. mask_(K-1)
//   rows                           d1   d2     .. dK          (the last K)
//   kept    n                             never a mask's row
class ParallelDrafter final : public Drafter {
 public:
  // Throws IncompatibleModels for a mask token outside the draft's embedding.
  ParallelDrafter(std::shared_ptr<Model> draft, Token mask_token_id,
                  std::int64_t prefill_chunk = 512);

  void keep(const Sequence&) override {}  // propose() kept all that can be

 private:
  void propose_caught_up(std::span<DraftRequest> batch) override;

  Token mask_token_id_;
};

// Classic speculative decoding: K forwards, each fed the proposal before it.
//
//   inputs  committed[past_length : n], d1, .., d(K-1)
//   kept    n + min(num_accepted, K - 1)
class AutoregressiveDrafter final : public Drafter {
 public:
  explicit AutoregressiveDrafter(std::shared_ptr<Model> draft, std::int64_t prefill_chunk = 512);

  void keep(const Sequence& sequence) override;

 private:
  void propose_caught_up(std::span<DraftRequest> batch) override;

  std::vector<DraftRequest*> requests_;  // one for every item
};

}  // namespace pard
