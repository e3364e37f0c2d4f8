#pragma once

#include <cstdint>
#include <vector>

namespace pard {

// Rows of queries that attend to the same head of keys and values: of one sequence's new tokens,
// and of all heads of queries that share it.
struct AttentionRows {
  static constexpr int max_count = 16;
  static constexpr int max_head_dim = 256;

  int count = 0;
  const float* queries[max_count] = {};   // [head_dim] each
  float* outputs[max_count] = {};         // [head_dim] each
  std::int64_t num_keys[max_count] = {};  // row i sees the keys 0 .. num_keys[i] - 1
};

struct AttentionHead {
  const float* keys = nullptr;    // [num_keys, head_dim]
  const float* values = nullptr;  // [num_keys, head_dim]
  int head_dim = 0;               // at most AttentionRows::max_head_dim
  float scale = 1;
  float softcap = 0;  // above 0: scores become tanh(score / softcap) * softcap
};

// outputs = softmax(queries keys^T * scale) values, in float32.
//
// Every key and value is read once for as many rows as a vector register has floats (16, 8 or 4):
// this is what makes verifying K + 1 rows cheap. A row's output is bit for bit the same whatever
// rows are with it, and NaN where a score is.
using AttendRows = void (*)(const AttentionRows&, const AttentionHead&);

// The fastest that this machine's CPU can run.
AttendRows attend_rows();

// All that it can run, slowest first.
const std::vector<AttendRows>& all_attend_rows();

}  // namespace pard
