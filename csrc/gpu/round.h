#pragma once

// What the kernels of a round are given, laid out alike on the host and on the device.
//
// A round works on a batch of slots, each holding one sequence or none. Per slot and round:
//
//   draft input    2K rows: the last K + 1 committed tokens, then K - 1 masks; where fewer are
//                  committed, more masks, whose rows nobody reads
//   target input   K + 1 rows: the newest token, then the proposals
//   yield          a record, and the committed tokens themselves
//
// Shapes depend on K and the number of slots alone, so that a round can be captured as one graph.

#include <cstdint>

#include "lanes.h"
#include "pard/types.h"

#if !PARD_ON_GPU
#include <algorithm>
#include <limits>

#include "pard/choose.h"
#include "pard/noise.h"
#endif

namespace pard::gpu {

inline constexpr int max_rows = 65;  // K + 1 at most

// How a slot's tokens are chosen: SamplingParams, with what the host computes once.
struct SlotSampling {
  float temperature;          // 0: argmax
  float inverse_temperature;  // 1 / temperature
  float top_p;
  float log_min_p;  // log of min_p, 0 or less; above 0: off
  std::int32_t top_k;
  std::uint32_t seed_low;
  std::uint32_t seed_high;
  std::int32_t active;  // 0: the slot holds no sequence
};

#if !PARD_ON_GPU
// What a slot with a sequence of these parameters holds.
inline SlotSampling slot_sampling(const SamplingParams& params) {
  const bool greedy = params.temperature == 0.0F;
  const float smallest_normal = std::numeric_limits<float>::min();
  return {params.temperature,
          greedy ? 0.0F : 1.0F / params.temperature,
          params.top_p,
          params.min_p > 0.0F ? noise::log(std::max(params.min_p, smallest_normal)) : 1.0F,
          params.top_k,
          static_cast<std::uint32_t>(params.seed),
          static_cast<std::uint32_t>(params.seed >> 32),
          1};
}
#endif

// What a round yields for a slot.
struct SlotRecord {
  std::int64_t length;  // before the round
  std::int32_t num_accepted;
  std::int32_t num_tokens;  // num_accepted + 1; 0 where rows allowed no choice
  std::int32_t bad_draft;   // those were the draft's
  std::int32_t tokens[max_rows];
};

struct DraftInputArgs {
  const Token* tokens;          // [slots, capacity], the committed ones
  const std::int64_t* lengths;  // [slots]
  const SlotSampling* sampling;
  std::int64_t capacity;
  std::int64_t* draft_tokens;      // [slots, 2K]
  std::int64_t* draft_positions;   // [slots, 2K]
  std::int64_t* draft_rows;        // [slots, K]: which of the 2K rows are the proposals
  std::int64_t* target_tokens;     // [slots, K + 1]: the first one here, proposals by choose
  std::int64_t* target_positions;  // [slots, K + 1]
  Token mask_token;
  Token filler;                // for committed ids outside the draft's embedding
  Token draft_vocab;           // ids the draft's embedding has
  std::int32_t num_proposals;  // K; 0: the target's input alone
};

struct ChooseArgs {
  const void* logits;  // [slots, rows, row_stride]
  std::int64_t row_stride;
  Token vocab_size;        // ids to choose from
  std::int32_t dtype;      // pard::DType
  std::int32_t num_rows;   // per slot: K for the draft, K + 1 for the target
  std::int32_t is_target;  // 0: write the proposals to target_tokens and stop
  Token* tokens;           // [slots, capacity]
  std::int64_t* lengths;   // [slots]
  std::int64_t capacity;
  const SlotSampling* sampling;
  std::int64_t* target_tokens;  // [slots, K + 1]
  std::int32_t* chosen;         // [slots, max_rows]
  std::int32_t* bad_draft;      // [slots]
  std::uint32_t* arrived;       // [slots], 0 between launches
  SlotRecord* records;          // [slots]
};

}  // namespace pard::gpu
