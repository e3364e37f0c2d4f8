#include "attention_op.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_kernel.h"
#include "op_run.h"

namespace pard {

namespace {

// Less than this many products are done sooner than another thread wakes up.
constexpr std::int64_t worth_a_thread = 1 << 20;

constexpr std::int64_t most_heads = 1 << 16;

// Rows that share a head of keys and values. More are tasks enough without dividing the keys, and
// what each gathers from each chunk takes memory.
constexpr std::int64_t most_rows_by_chunk = 128;

// Inputs a node may name as left out, those of later versions of the operator included.
constexpr std::size_t num_empty_inputs = 16;

enum Input : std::size_t {
  query_input,  // [1, R, (H + 2 KV) D] with keys and values behind the queries, or [1, R, H D]
  key_input,    // [1, R, KV D]
  value_input,
  past_key_input,  // [1, KV, S, D]
  past_value_input,
  seqlens_input,  // [1]: the length with the new rows, less 1
  total_input,    // says the same
  cos_input,      // [positions, half of the dimensions that turn]
  sin_input,
  sinks_input = 11,  // [H]
};
static_assert(sinks_input == attention_op_inputs - 1);

// Turns pairs of a row's elements by an angle that depends on its position.
struct Rotation {
  const float* cos = nullptr;  // null: none
  const float* sin = nullptr;
  std::int64_t half = 0;
  std::int64_t positions = 0;
  bool interleaved = false;

  void apply(const float* row, std::int64_t size, std::int64_t position, float* turned) const {
    std::copy(row, row + size, turned);
    if (cos == nullptr) return;
    const std::int64_t step = interleaved ? 2 : 1;
    const std::int64_t apart = interleaved ? 1 : half;
    const float* c = cos + position * half;
    const float* s = sin + position * half;
    for (std::int64_t i = 0; i < half; ++i) {
      const float x = row[i * step];
      const float y = row[i * step + apart];
      turned[i * step] = x * c[i] - y * s[i];
      turned[i * step + apart] = x * s[i] + y * c[i];
    }
  }
};

// A node of a graph: its attributes.
struct Kernel {
  const ort::Api& api;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  float scale = 0;
  float softcap = 0;
  std::int64_t window = 0;  // keys that a row sees, its own the last; 0 or less: all up to it
  float default_sink = -std::numeric_limits<float>::infinity();  // where none are given: no sink
  bool rotates = false;
  bool interleaved = false;

  void compute(ort::KernelContext* context) const;
  Rotation rotation(const OpRun& run) const;
  std::int64_t first_key(std::int64_t position) const {
    return window > 0 ? std::max<std::int64_t>(0, position + 1 - window) : 0;
  }
};

// One run of a node.
struct Attention {
  const OpRun& run;
  const Kernel& node;
  Rotation rotation;
  const float* queries;  // of head h in row r: from r * query_size + h * dim on
  const float* sinks;    // [H], or null
  float* output;         // [R, H D]
  float* keys;           // [KV, capacity, D]
  float* values;
  std::int64_t rows;
  std::int64_t past;
  std::int64_t capacity;
  std::int64_t query_size;
  std::int64_t dim;

  // Rows of queries that share a head of keys and values: group after group of heads, row after
  // row. They are computed in blocks of up to 16.
  std::int64_t group = node.num_heads / node.num_kv_heads;
  std::int64_t per_head = rows * group;
  std::int64_t blocks = (per_head + AttentionRows::max_count - 1) / AttentionRows::max_count;
  const AttentionKernel& kernel = attention_kernel();

  void write(const float* new_keys, const float* new_values, std::int64_t row_size) const;
  void attend() const;
  void attend_by_chunk(std::int64_t begin, std::int64_t chunks) const;
  void gather(std::int64_t h, std::int64_t block, std::int64_t begin, std::int64_t end,
              AttentionPart* parts) const;
  void finish(std::int64_t h, std::int64_t block, AttentionPart* parts, std::int64_t count,
              std::int64_t stride) const;
  template <class Task>
  void for_each(std::int64_t count, bool parallel, const Task& task) const {
    run.for_each(static_cast<std::size_t>(count), parallel,
                 [&](std::size_t i) { task(static_cast<std::int64_t>(i)); });
  }
};

void Attention::write(const float* new_keys, const float* new_values, std::int64_t row_size) const {
  for (std::int64_t h = 0; h < node.num_kv_heads; ++h) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t from = r * row_size + h * dim;
      const std::int64_t to = (h * capacity + past + r) * dim;
      rotation.apply(new_keys + from, dim, past + r, keys + to);
      std::copy_n(new_values + from, dim, values + to);
    }
  }
}

void Attention::attend() const {
  const std::int64_t total = past + rows;
  const std::int64_t first_key = node.first_key(past);
  const std::int64_t begin = first_key / attention_chunk * attention_chunk;
  const std::int64_t chunks = (total - begin + attention_chunk - 1) / attention_chunk;
  const bool parallel = rows * node.num_heads * (total - first_key) * dim > worth_a_thread;
  if (parallel && chunks > 1 && per_head <= most_rows_by_chunk) {
    attend_by_chunk(begin, chunks);
    return;
  }
  for_each(node.num_kv_heads * blocks, parallel, [&](std::int64_t task) {
    AttentionPart parts[AttentionRows::max_count];
    gather(task / blocks, task % blocks, begin, total, parts);
    finish(task / blocks, task % blocks, parts, 1, 0);
  });
}

void Attention::attend_by_chunk(std::int64_t begin, std::int64_t chunks) const {
  const auto all = static_cast<std::size_t>(node.num_kv_heads * chunks * per_head);
  const auto memory = std::make_unique_for_overwrite<AttentionPart[]>(all);  // [KV, chunk, row]
  AttentionPart* const parts = memory.get();
  for_each(node.num_kv_heads * chunks * blocks, true, [&](std::int64_t task) {
    const std::int64_t head_chunk = task / blocks;
    const std::int64_t from = begin + head_chunk % chunks * attention_chunk;
    gather(head_chunk / chunks, task % blocks, from, from + attention_chunk,
           parts + head_chunk * per_head + task % blocks * AttentionRows::max_count);
  });
  for_each(node.num_kv_heads * blocks, blocks > 1, [&](std::int64_t task) {
    const std::int64_t h = task / blocks;
    finish(h, task % blocks,
           parts + h * chunks * per_head + task % blocks * AttentionRows::max_count, chunks,
           per_head);
  });
}

// parts[i] becomes what row i of a block gathers from the chunks in [begin, end).
void Attention::gather(std::int64_t h, std::int64_t block, std::int64_t begin, std::int64_t end,
                       AttentionPart* parts) const {
  const std::int64_t first = block * AttentionRows::max_count;
  float turned[AttentionRows::max_count][AttentionRows::max_head_dim];
  AttentionRows those;
  those.count =
      static_cast<int>(std::min<std::int64_t>(per_head - first, AttentionRows::max_count));
  for (int i = 0; i < those.count; ++i) {
    const std::int64_t r = (first + i) / group;
    const float* row = queries + r * query_size + (h * group + (first + i) % group) * dim;
    rotation.apply(row, dim, past + r, turned[i]);
    those.queries[i] = turned[i];
    those.first_key[i] = node.first_key(past + r);
    those.end_key[i] = past + r + 1;
  }
  const float default_scale = 1.0F / std::sqrt(static_cast<float>(dim));
  kernel.gather(those,
                {keys + h * capacity * dim, values + h * capacity * dim, static_cast<int>(dim),
                 node.scale == 0 ? default_scale : node.scale, node.softcap},
                begin, end, parts);
}

// Writes the output of a block's rows. Each has `count` parts, `stride` apart.
void Attention::finish(std::int64_t h, std::int64_t block, AttentionPart* parts, std::int64_t count,
                       std::int64_t stride) const {
  const std::int64_t first = block * AttentionRows::max_count;
  const std::int64_t end = std::min<std::int64_t>(per_head, first + AttentionRows::max_count);
  for (std::int64_t i = first; i < end; ++i) {
    const std::int64_t query_head = h * group + i % group;
    kernel.finish(parts + (i - first), count, stride, static_cast<int>(dim),
                  sinks == nullptr ? node.default_sink : sinks[query_head],
                  output + (i / group * node.num_heads + query_head) * dim);
  }
}

Rotation Kernel::rotation(const OpRun& run) const {
  if (!rotates) return {};
  const OpTensor cos = run.input(cos_input);
  const OpTensor sin = run.input(sin_input);
  run.require(cos.data != nullptr && sin.shape == cos.shape && cos.shape[2] == absent,
              "do_rotary without its cosines and sines");
  return {cos.floats(), sin.floats(), cos.shape[1], cos.shape[0], interleaved};
}

void Kernel::compute(ort::KernelContext* context) const {
  const OpRun run(api, context);
  const OpTensor query = run.input(query_input);
  const OpTensor key = run.input(key_input);
  const OpTensor value = run.input(value_input);
  const OpTensor past_key = run.input(past_key_input);
  const OpTensor past_value = run.input(past_value_input);
  const OpTensor seqlens = run.input(seqlens_input);
  const OpTensor sinks = run.input(sinks_input);
  const Rotation rotation = this->rotation(run);

  const auto [batch, rows, query_size, none] = query.shape;
  const bool packed = key.data == nullptr;
  const std::int64_t dim = query_size / (num_heads + (packed ? 2 * num_kv_heads : 0));
  const std::int64_t kv_size = num_kv_heads * dim;
  const std::int64_t capacity = past_key.shape[2];
  const OpShape cache_shape{1, num_kv_heads, capacity, dim};
  const OpShape kv_shape{1, rows, kv_size, absent};
  const OpShape sinks_shape{num_heads, absent, absent, absent};
  run.require(batch == 1 && none == absent && dim > 0 && past_key.shape == cache_shape &&
                  past_value.shape == cache_shape &&
                  seqlens.shape == OpShape{1, absent, absent, absent} &&
                  (packed || (key.shape == kv_shape && value.shape == kv_shape)) &&
                  (sinks.data == nullptr || sinks.shape == sinks_shape),
              "inputs whose shapes do not fit each other");
  run.require(dim <= AttentionRows::max_head_dim && 2 * rotation.half <= dim,
              "heads or cosines that are too wide");

  const std::int64_t total = std::int64_t{*static_cast<const std::int32_t*>(seqlens.data)} + 1;
  const std::int64_t past = total - rows;
  run.require(past >= 0 && total <= capacity, "lengths that do not fit the keys and values");
  run.require(total <= rotation.positions || rotation.cos == nullptr,
              "positions behind the last cosine");

  float* output = run.output(0, {1, rows, num_heads * dim});
  float* keys = run.output(1, {1, num_kv_heads, capacity, dim});
  float* values = run.output(2, {1, num_kv_heads, capacity, dim});
  run.require(keys == past_key.data && values == past_value.data,
              "keys and values that are not in place, which own_attention=False allows");

  const Attention attention{run,    *this, rotation, query.floats(), sinks.floats(), output, keys,
                            values, rows,  past,     capacity,       query_size,     dim};
  const float* behind = query.floats() + num_heads * dim;  // the queries
  attention.write(packed ? behind : key.floats(), packed ? behind + kv_size : value.floats(),
                  packed ? query_size : kv_size);
  attention.attend();
}

std::unique_ptr<Kernel> read_node(const AttentionOp& op, const ort::KernelInfo* info) {
  auto made = std::make_unique<Kernel>(Kernel{.api = op.api});
  const auto optional = [&](ort::Status* status) {  // attributes may be
    if (status != nullptr) op.api.release_status(status);
  };
  std::int64_t smooth = 0;
  std::int64_t rotates = 0;
  std::int64_t interleaved = 0;
  const std::int64_t& heads = made->num_heads;
  const std::int64_t& kv_heads = made->num_kv_heads;
  optional(op.api.get_int_attribute(info, "num_heads", &made->num_heads));
  optional(op.api.get_int_attribute(info, "kv_num_heads", &made->num_kv_heads));
  OpRun::require(kv_heads > 0 && heads >= kv_heads && heads <= most_heads && heads % kv_heads == 0,
                 "GroupQueryAttention with numbers of heads that make no sense");
  optional(op.api.get_float_attribute(info, "scale", &made->scale));
  optional(op.api.get_float_attribute(info, "softcap", &made->softcap));
  optional(op.api.get_int_attribute(info, "local_window_size", &made->window));
  optional(op.api.get_int_attribute(info, "smooth_softmax", &smooth));
  optional(op.api.get_int_attribute(info, "do_rotary", &rotates));
  optional(op.api.get_int_attribute(info, "rotary_interleaved", &interleaved));
  if (smooth == 1) made->default_sink = 0;
  made->rotates = rotates != 0;
  made->interleaved = interleaved != 0;
  return made;
}

}  // namespace

AttentionOp::AttentionOp(const ort::Api& its_api) : OwnOp(its_api) {
  using ort::ElementType;
  make_kernels<AttentionOp, read_node>(*this);
  get_name = [](const CustomOp*) { return "GroupQueryAttention"; };
  get_input_count = [](const CustomOp*) { return attention_op_inputs + num_empty_inputs; };
  get_input_type = [](const CustomOp*, std::size_t index) {
    return index == seqlens_input || index == total_input ? ElementType::i32 : ElementType::f32;
  };
  get_input_presence = [](const CustomOp*, std::size_t index) {
    const bool optional = index == key_input || index == value_input || index >= cos_input;
    return optional ? Presence::optional : Presence::required;
  };
  get_output_count = [](const CustomOp*) { return attention_op_outputs; };
}

}  // namespace pard
