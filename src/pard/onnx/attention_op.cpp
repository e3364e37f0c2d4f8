#include "attention_op.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
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
};

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
  bool rotates = false;
  bool interleaved = false;

  void compute(ort::KernelContext* context) const;
  Rotation rotation(const OpRun& run) const;
};

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
  const Rotation rotation = this->rotation(run);

  const auto [batch, rows, query_size, none] = query.shape;
  const bool packed = key.data == nullptr;
  const std::int64_t dim = query_size / (num_heads + (packed ? 2 * num_kv_heads : 0));
  const std::int64_t kv_size = num_kv_heads * dim;
  const std::int64_t capacity = past_key.shape[2];
  const OpShape cache_shape{1, num_kv_heads, capacity, dim};
  const OpShape kv_shape{1, rows, kv_size, absent};
  run.require(batch == 1 && none == absent && dim > 0 && past_key.shape == cache_shape &&
                  past_value.shape == cache_shape &&
                  seqlens.shape == OpShape{1, absent, absent, absent} &&
                  (packed || (key.shape == kv_shape && value.shape == kv_shape)),
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

  for (std::int64_t h = 0; h < num_kv_heads; ++h) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* behind = query.floats() + r * query_size + num_heads * dim;  // the queries
      const float* new_key = packed ? behind : key.floats() + r * kv_size;
      const float* new_value = packed ? behind + kv_size : value.floats() + r * kv_size;
      const std::int64_t row = (h * capacity + past + r) * dim;
      rotation.apply(new_key + h * dim, dim, past + r, keys + row);
      std::copy_n(new_value + h * dim, dim, values + row);
    }
  }

  // A task: up to 16 rows of queries that share a head of keys and values, whose heads of queries
  // follow one another in every new row.
  const std::int64_t group = num_heads / num_kv_heads;
  const std::int64_t per_head = rows * group;
  const std::int64_t blocks = (per_head + AttentionRows::max_count - 1) / AttentionRows::max_count;
  const bool parallel = rows * num_heads * total * dim > worth_a_thread;
  const AttendRows attend = attend_rows();
  run.for_each(static_cast<std::size_t>(num_kv_heads * blocks), parallel, [&](std::size_t index) {
    const std::int64_t h = static_cast<std::int64_t>(index) / blocks;
    const std::int64_t begin = static_cast<std::int64_t>(index) % blocks * AttentionRows::max_count;
    float turned[AttentionRows::max_count][AttentionRows::max_head_dim];
    AttentionRows block;
    block.count =
        static_cast<int>(std::min<std::int64_t>(per_head - begin, AttentionRows::max_count));
    for (int i = 0; i < block.count; ++i) {
      const std::int64_t r = (begin + i) / group;
      const std::int64_t query_head = h * group + (begin + i) % group;
      rotation.apply(query.floats() + r * query_size + query_head * dim, dim, past + r, turned[i]);
      block.queries[i] = turned[i];
      block.outputs[i] = output + (r * num_heads + query_head) * dim;
      block.num_keys[i] = past + r + 1;
    }
    const float default_scale = 1.0F / std::sqrt(static_cast<float>(dim));
    attend(block, {keys + h * capacity * dim, values + h * capacity * dim, static_cast<int>(dim),
                   scale == 0 ? default_scale : scale, softcap});
  });
}

std::unique_ptr<Kernel> read_node(const AttentionOp& op, const ort::KernelInfo* info) {
  auto made = std::make_unique<Kernel>(Kernel{.api = op.api});
  const auto optional = [&](ort::Status* status) {  // attributes may be
    if (status != nullptr) op.api.release_status(status);
  };
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
  optional(op.api.get_int_attribute(info, "do_rotary", &rotates));
  optional(op.api.get_int_attribute(info, "rotary_interleaved", &interleaved));
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
