#include "graph_runner.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <type_traits>
#include <utility>

namespace pard {

namespace {

constexpr std::int64_t smallest_static_past = 256;
constexpr std::uint16_t lowest_f16 = 0xFBFF;

template <class T>
constexpr ort::ElementType type_of() {
  if constexpr (std::is_same_v<T, float>) {
    return ort::ElementType::f32;
  } else if constexpr (std::is_same_v<T, std::uint16_t>) {
    return ort::ElementType::f16;
  } else if constexpr (std::is_same_v<T, std::int32_t>) {
    return ort::ElementType::i32;
  } else {
    return ort::ElementType::i64;
  }
}

}  // namespace

GraphRunner::GraphRunner(const Session& session, const FolderContract& contract,
                         const GraphTypes& types, bool static_past,
                         std::shared_ptr<const Memory> memory)
    : session_(session),
      form_(contract.form),
      types_(types),
      kv_shape_{contract.num_layers, contract.num_kv_heads, contract.head_dim, size_of(types.kv),
                contract.form == GraphForm::gqa ? KvLayout::heads_first : KvLayout::rows_first},
      row_size_(contract.row_size()),
      max_length_(contract.max_length),
      least_rows_(contract.file_summary.dropping_window),
      static_past_(static_past && contract.form == GraphForm::portable),
      host_(session.library()),
      kv_memory_(std::move(memory)) {
  const GraphNames& names = contract.names;
  const auto num_parts = 2 * static_cast<std::size_t>(contract.num_layers);
  names_.reserve(16 + 2 * num_parts);
  input_ids_ = add_input<std::int64_t>(names.input_ids);
  position_ids_ = add_input<std::int64_t>(names.position_ids);
  const bool half = types.kv == DType::f16;
  bias_f32_ = add_input<float>(half ? "" : names.attention_bias);
  bias_f16_ = add_input<std::uint16_t>(half ? names.attention_bias : "");
  attention_mask_ = add_input<std::int64_t>(names.attention_mask);
  seqlens_k_ = add_input<std::int32_t>(names.seqlens_k);
  total_sequence_length_ = add_input<std::int32_t>(names.total_sequence_length);
  num_logits_ = add_input<std::int64_t>(names.num_logits);

  const auto add_name = [this](std::vector<const char*>& list, std::string name) {
    list.push_back(names_.emplace_back(std::move(name)).c_str());
  };
  first_kv_input_ = input_names_.size();
  add_name(output_names_, names.logits);
  for (std::int64_t layer = 0; layer < contract.num_layers; ++layer) {
    add_name(input_names_, layer_name(names.past_key, layer));
    add_name(input_names_, layer_name(names.past_value, layer));
    add_name(output_names_, layer_name(names.new_key, layer));
    add_name(output_names_, layer_name(names.new_value, layer));
  }
  const auto none = [] { return ort::Handle<ort::Value>(nullptr, nullptr); };
  inputs_.resize(input_names_.size());
  outputs_.resize(output_names_.size());
  std::generate_n(std::back_inserter(owned_inputs_), inputs_.size(), none);
  std::generate_n(std::back_inserter(owned_outputs_), outputs_.size(), none);
}

template <class T>
GraphRunner::HostInput<T> GraphRunner::add_input(const std::string& name) {
  HostInput<T> input;
  if (!name.empty()) {
    input.slot = input_names_.size();
    input_names_.push_back(names_.emplace_back(name).c_str());
  }
  return input;
}

void GraphRunner::set_input(std::size_t slot, ort::Handle<ort::Value> tensor) {
  inputs_[slot] = tensor.get();
  owned_inputs_[slot] = std::move(tensor);
}

// Memory for an input of this shape. It only grows, filled with `fill`; what is in it stays.
template <class T>
T* GraphRunner::prepare(HostInput<T>& input, std::initializer_list<std::int64_t> shape, T fill) {
  std::size_t size = 1;
  std::array<std::int64_t, 4> padded_shape{};
  std::copy(shape.begin(), shape.end(), padded_shape.begin());
  for (const std::int64_t dimension : shape) {
    size *= static_cast<std::size_t>(dimension);
  }
  if (input.data.size() < size) {
    input.data.resize(std::max(size, 2 * input.data.size()), fill);
  }
  if (input.bound != input.data.data() || input.shape != padded_shape) {
    set_input(*input.slot, session_.tensor(host_, input.data.data(), type_of<T>(),
                                           std::span(shape.begin(), shape.size())));
    input.bound = input.data.data();
    input.shape = padded_shape;
  }
  return input.data.data();
}

SequenceCache GraphRunner::make_cache() const {
  // Rows of padding lie behind the last that counts.
  const std::int64_t max_rows = 2 * past_rows(max_length_);
  // Masked rows of a past are read, and NaN would come through a mask.
  const bool zeroed = static_past_;
  return {KvBuffer(kv_shape_, static_past_ ? max_rows : std::max(max_length_, least_rows_), zeroed,
                   kv_memory_),
          {}};
}

std::int64_t GraphRunner::past_rows(std::int64_t past_length) const {
  if (!static_past_) {
    return past_length;
  }
  return static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(std::max(past_length, smallest_static_past))));
}

void GraphRunner::run(SequenceCache& cache, const GraphRun& run) {
  const std::int64_t past = past_rows(run.past_length);
  const std::int64_t needed = std::max({run.past_length + run.num_rows(), past, least_rows_});
  if (cache.buffer.reserve(needed)) {
    cache.tensors.clear();
  }
  bind_rows(run, past);
  bind_logits(run);
  if (form_ == GraphForm::portable) {
    bind_portable(cache, run, past);
  } else {
    bind_gqa(cache);
  }
  session_.run(input_names_, inputs_, output_names_, outputs_, run.unread_logits);
  if (static_past_) {
    shapes_.insert({past, run.num_rows(), run.num_logits});
  }
}

void GraphRunner::bind_rows(const GraphRun& run, std::int64_t past_rows) {
  const std::int64_t rows = run.num_rows();
  const std::int64_t total = run.past_length + rows;
  std::int64_t* ids = prepare(input_ids_, {1, rows});
  std::fill(std::copy(run.tokens.begin(), run.tokens.end(), ids), ids + rows, run.tokens.back());
  if (position_ids_.slot) {
    std::int64_t* positions = prepare(position_ids_, {1, rows});
    for (std::int64_t row = 0; row < rows; ++row) {
      positions[row] = std::min(run.past_length + row, max_length_ - 1);
    }
  }
  if (bias_f32_.slot) {
    fill_bias(prepare(bias_f32_, {1, 1, rows, past_rows + rows}),
              std::numeric_limits<float>::lowest(), run.past_length, past_rows, rows);
  }
  if (bias_f16_.slot) {
    fill_bias(prepare(bias_f16_, {1, 1, rows, past_rows + rows}), lowest_f16, run.past_length,
              past_rows, rows);
  }
  if (attention_mask_.slot) {
    prepare(attention_mask_, {1, total}, std::int64_t{1});
  }
  if (seqlens_k_.slot) {
    *prepare(seqlens_k_, {1}) = static_cast<std::int32_t>(total - 1);
  }
  if (total_sequence_length_.slot) {
    *prepare(total_sequence_length_, {}) = static_cast<std::int32_t>(total);
  }
  if (num_logits_.slot) {
    *prepare(num_logits_, {1}) = run.num_logits;
  }
}

// Row i sees the past and the new rows 0..i:
//
//   [0 .. past) visible  [past .. past_rows) hidden  [past_rows .. past_rows + i] visible, rest not
template <class T>
void GraphRunner::fill_bias(T* bias, T hidden, std::int64_t past, std::int64_t past_rows,
                            std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; ++row) {
    T* const end = bias + past_rows + rows;
    T* next = std::fill_n(bias, past, T{});
    next = std::fill_n(next, past_rows - past, hidden);
    next = std::fill_n(next, row + 1, T{});
    std::fill(next, end, hidden);
    bias = end;
  }
}

void GraphRunner::bind_logits(const GraphRun& run) {
  if (bound_logits_ == run.logits && bound_num_logits_ == run.num_logits &&
      bound_logits_memory_ == run.logits_memory) {
    return;
  }
  owned_outputs_[0] = session_.tensor(*run.logits_memory, run.logits, element_type(types_.logits),
                                      {1, run.num_logits, row_size_});
  outputs_[0] = owned_outputs_[0].get();
  bound_logits_ = run.logits;
  bound_num_logits_ = run.num_logits;
  bound_logits_memory_ = run.logits_memory;
}

// The past is the buffer's prefix; the new rows go right behind its last row that counts. With a
// static past they overlap rows of it that are masked: those are finite, so their weight is zero.
void GraphRunner::bind_portable(SequenceCache& cache, const GraphRun& run, std::int64_t past_rows) {
  const ort::ElementType type = element_type(types_.kv);
  const std::size_t offset = static_cast<std::size_t>(run.past_length) * kv_shape_.row_bytes();
  const std::int64_t heads = kv_shape_.num_heads;
  const std::int64_t size = kv_shape_.head_dim;
  for (std::size_t i = 0; i + 1 < outputs_.size(); ++i) {
    std::byte* part = cache.buffer.part(i);
    set_input(first_kv_input_ + i,
              session_.tensor(*kv_memory_, part, type, {1, past_rows, heads, size}));
    owned_outputs_[i + 1] =
        session_.tensor(*kv_memory_, part + offset, type, {1, run.num_rows(), heads, size});
    outputs_[i + 1] = owned_outputs_[i + 1].get();
  }
}

void GraphRunner::bind_gqa(SequenceCache& cache) {
  const std::size_t num_parts = outputs_.size() - 1;
  while (cache.tensors.size() < num_parts) {
    cache.tensors.push_back(session_.tensor(
        *kv_memory_, cache.buffer.part(cache.tensors.size()), element_type(types_.kv),
        {1, kv_shape_.num_heads, cache.buffer.capacity(), kv_shape_.head_dim}));
  }
  for (std::size_t i = 0; i < num_parts; ++i) {
    ort::Value* tensor = cache.tensors[i].get();
    inputs_[first_kv_input_ + i] = tensor;
    outputs_[i + 1] = tensor;
  }
}

}  // namespace pard
