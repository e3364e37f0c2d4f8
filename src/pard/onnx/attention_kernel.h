#pragma once

#include <cstdint>
#include <vector>

namespace pard {

// Keys are taken in chunks of this many, which begin at its multiples. A row gathers from each
// chunk by itself, and what it gathered is added up chunk after chunk: so the chunks may be
// computed on several threads and give the same bits.
constexpr std::int64_t attention_chunk = 512;

// Rows of queries that attend to the same head of keys and values: of one sequence's new tokens,
// and of all heads of queries that share it.
struct AttentionRows {
  static constexpr int max_count = 16;
  static constexpr int max_head_dim = 256;

  int count = 0;
  const float* queries[max_count] = {};    // [head_dim] each
  std::int64_t first_key[max_count] = {};  // row i sees the keys first_key[i] .. end_key[i] - 1
  std::int64_t end_key[max_count] = {};
};

struct AttentionHead {
  const float* keys = nullptr;    // [num_keys, head_dim]
  const float* values = nullptr;  // [num_keys, head_dim]
  int head_dim = 0;               // at most AttentionRows::max_head_dim
  float scale = 1;
  float softcap = 0;  // above 0: scores become tanh(score / softcap) * softcap
};

// What a row gathered from some chunks. A weight is e^(score - highest).
struct AttentionPart {
  float highest;                            // score
  float total;                              // of the weights
  float sums[AttentionRows::max_head_dim];  // of the values, weighted
};

// outputs = softmax(queries keys^T * scale) values, in float32, for one set of instructions.
//
// Every key and value is read once for as many rows as a vector register has floats (16, 8 or 4):
// this is what makes verifying K + 1 rows cheap. A row's output is bit for bit the same whatever
// rows are with it and however its chunks are divided among calls, and NaN where a score is.
struct AttentionKernel {
  // parts[i] becomes what row i gathers from the chunks that begin in [begin, end), one at least;
  // `begin` begins a chunk.
  void (*gather)(const AttentionRows&, const AttentionHead&, std::int64_t begin, std::int64_t end,
                 AttentionPart* parts);

  // Writes a row's output [head_dim]. Its parts are those of its chunks in ascending order, each
  // `stride` behind the one before; the first is changed. The row attends to a sink too, a key of
  // this score without a value; -infinity: to none.
  void (*finish)(AttentionPart* parts, std::int64_t count, std::int64_t stride, int head_dim,
                 float sink, float* output);
};

// The fastest that this machine's CPU can run.
const AttentionKernel& attention_kernel();

// All that it can run, slowest first.
const std::vector<AttentionKernel>& all_attention_kernels();

}  // namespace pard
