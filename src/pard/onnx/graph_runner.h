#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "folder.h"
#include "graph_check.h"
#include "kv_buffer.h"
#include "pard/types.h"
#include "session.h"

namespace pard {

// One sequence's keys and values, and the tensors over them that need not be made again.
struct SequenceCache {
  KvBuffer buffer;
  std::vector<ort::Handle<ort::Value>> tensors;  // gqa: one for every part, until the buffer moves
};

// One run of the graph, for one sequence:
//
//   rows of the graph   tokens[0] .. tokens[R-1] | num_padding times tokens[R-1]
//   logits              the last num_logits of them
//
// Rows of padding write keys and values behind the others', where the next run overwrites them.
struct GraphRun {
  std::int64_t past_length = 0;
  std::span<const Token> tokens;
  std::int64_t num_padding = 0;
  std::int64_t num_logits = 0;     // all rows, where the graph cannot be asked for fewer
  std::int64_t unread_logits = 0;  // the first so many of them need not be computed
  std::byte* logits = nullptr;     // room for [num_logits, row size], in this memory
  const Memory* logits_memory = nullptr;

  std::int64_t num_rows() const { return static_cast<std::int64_t>(tokens.size()) + num_padding; }
};

// Binds inputs and outputs of either form to memory and runs the graph. What kept its shape since
// the last run is not made again.
class GraphRunner {
 public:
  // `static_past`: the past is handed over in lengths of few sizes, the rest of it masked
  // (portable form only), for providers that compile a graph for every shape.
  // Keys and values lie in `memory`.
  GraphRunner(const Session& session, const FolderContract& contract, const GraphTypes& types,
              bool static_past, std::shared_ptr<const Memory> memory);

  SequenceCache make_cache() const;
  void run(SequenceCache& cache, const GraphRun& run);

  std::size_t num_shapes() const { return shapes_.size(); }

 private:
  // An input that lies in host memory of ours, and its tensor.
  template <class T>
  struct HostInput {
    std::optional<std::size_t> slot;  // absent: the graph has no such input
    std::vector<T> data;
    const T* bound = nullptr;
    std::array<std::int64_t, 4> shape{};
  };

  template <class T>
  HostInput<T> add_input(const std::string& name);
  template <class T>
  T* prepare(HostInput<T>& input, std::initializer_list<std::int64_t> shape, T fill = {});
  void set_input(std::size_t slot, ort::Handle<ort::Value> tensor);

  void bind_rows(const GraphRun& run, std::int64_t past_rows);
  void bind_logits(const GraphRun& run);
  void bind_portable(SequenceCache& cache, const GraphRun& run, std::int64_t past_rows);
  void bind_gqa(SequenceCache& cache);
  template <class T>
  void fill_bias(T* bias, T hidden, std::int64_t past, std::int64_t past_rows, std::int64_t rows);
  std::int64_t past_rows(std::int64_t past_length) const;

  const Session& session_;
  GraphForm form_;
  GraphTypes types_;
  KvShape kv_shape_;
  std::int64_t row_size_;
  std::int64_t max_length_;
  std::int64_t least_rows_;  // a cache that may drop rows must hold a window, and then keeps all
  bool static_past_;
  std::set<std::array<std::int64_t, 3>> shapes_;  // past, rows and logits; where they are few
  HostMemory host_;
  std::shared_ptr<const Memory> kv_memory_;

  std::vector<std::string> names_;  // owns what the arrays below point to
  std::vector<const char*> input_names_;
  std::vector<const char*> output_names_;
  std::vector<const ort::Value*> inputs_;
  std::vector<ort::Value*> outputs_;
  std::vector<ort::Handle<ort::Value>> owned_inputs_;  // slot by slot; null: the cache's
  std::vector<ort::Handle<ort::Value>> owned_outputs_;
  std::size_t first_kv_input_ = 0;  // the logits are output 0, keys and values follow

  HostInput<std::int64_t> input_ids_;
  HostInput<std::int64_t> position_ids_;
  HostInput<float> bias_f32_;
  HostInput<std::uint16_t> bias_f16_;
  HostInput<std::int64_t> attention_mask_;
  HostInput<std::int32_t> seqlens_k_;
  HostInput<std::int32_t> total_sequence_length_;
  HostInput<std::int64_t> num_logits_;
  const std::byte* bound_logits_ = nullptr;
  std::int64_t bound_num_logits_ = 0;
  const Memory* bound_logits_memory_ = nullptr;
};

}  // namespace pard
