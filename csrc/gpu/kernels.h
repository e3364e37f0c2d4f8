#pragma once

// The two kernels of a round.

#include "choose_row.h"
#include "lanes.h"
#include "round.h"

namespace pard::gpu {

// One block per slot: the rows draft and target are fed, but for the proposals.
PARD_DEVICE void build_input(const DraftInputArgs& args) {
  const int slot = block_x();
  const int k = args.num_proposals, num_rows = 2 * k;
  const std::int64_t length = args.sampling[slot].active ? args.lengths[slot] : 1;
  const Token* tokens = args.tokens + slot * args.capacity;
  const std::int64_t begin = length > k + 1 ? length - k - 1 : 0;

  for (int row = lane(); row < num_rows; row += num_lanes) {
    const std::int64_t position = begin + row;
    Token token = args.mask_token;
    if (position < length) {
      token = tokens[position] < args.draft_vocab ? tokens[position] : args.filler;
    }
    args.draft_tokens[slot * num_rows + row] = token;
    args.draft_positions[slot * num_rows + row] = position;
  }
  for (int i = lane(); i < k; i += num_lanes) {
    args.draft_rows[slot * k + i] = slot * num_rows + (length - 1 - begin) + i;
  }
  for (int row = lane(); row <= k; row += num_lanes) {
    args.target_positions[slot * (k + 1) + row] = length - 1 + row;
  }
  if (lane() == 0) args.target_tokens[slot * (k + 1)] = tokens[length - 1];
}

// One lane, once all rows of a slot have their choice.
PARD_DEVICE void verify_slot(const ChooseArgs& args, int slot) {
  const int num_proposals = args.num_rows - 1;
  const std::int64_t* proposals = args.target_tokens + slot * args.num_rows + 1;
  const std::int32_t* chosen = args.chosen + slot * max_rows;
  Token* tokens = args.tokens + slot * args.capacity;
  SlotRecord& record = args.records[slot];
  const std::int64_t length = args.lengths[slot];
  const bool bad_draft = num_proposals > 0 && args.bad_draft[slot] != 0;

  int accepted = 0;
  while (accepted < num_proposals && proposals[accepted] == chosen[accepted]) ++accepted;
  int num_tokens = accepted + 1;
  if (chosen[accepted] < 0) {  // the rows before the bad one stand; the next round meets it first
    num_tokens = accepted;
    if (accepted > 0) --accepted;
  }
  if (bad_draft) num_tokens = accepted = 0;
  record.length = length;
  record.num_accepted = accepted;
  record.num_tokens = num_tokens;
  record.bad_draft = bad_draft ? 1 : 0;
  for (int i = 0; i < num_tokens; ++i) {
    record.tokens[i] = chosen[i];
    tokens[length + i] = chosen[i];
  }
  args.lengths[slot] = length + num_tokens;
}

// One block per row and slot. The draft's choices become the target's input; the target's are
// verified by the block that comes last.
PARD_DEVICE void choose_and_verify(const ChooseArgs& args, Scratch& scratch) {
  const int row = block_x(), slot = block_y();
  const SlotSampling sampling = args.sampling[slot];
  if (!sampling.active) {
    // An idle slot's row in the target's batch still has to be some token.
    if (lane() == 0) {
      if (!args.is_target) args.target_tokens[slot * (args.num_rows + 1) + 1 + row] = 0;
      if (args.is_target && row == 0) args.records[slot].num_tokens = 0;
    }
    return;
  }
  const std::int64_t index = std::int64_t{slot} * args.num_rows + row;
  const auto dtype = static_cast<DType>(args.dtype);
  const auto* data = static_cast<const char*>(args.logits) +
                     index * args.row_stride * static_cast<std::int64_t>(size_of(dtype));
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % 8 == 0;
  const GpuRow logits{data, dtype, args.vocab_size, aligned};
  const Token token = choose_row(logits, sampling, args.lengths[slot] + row, scratch);
  if (lane() != 0) return;

  args.chosen[slot * max_rows + row] = token;
  if (!args.is_target) {
    args.target_tokens[slot * (args.num_rows + 1) + 1 + row] = token < 0 ? 0 : token;
  }
  const auto last = static_cast<std::uint32_t>(args.num_rows - 1);
  if (arrive(args.arrived[slot]) != last) return;
  args.arrived[slot] = 0;
  if (args.is_target) {
    verify_slot(args, slot);
  } else {
    std::int32_t bad = 0;
    for (int i = 0; i < args.num_rows; ++i) bad |= args.chosen[slot * max_rows + i] < 0 ? 1 : 0;
    args.bad_draft[slot] = bad;
  }
}

}  // namespace pard::gpu
