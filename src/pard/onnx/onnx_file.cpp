#include "onnx_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <system_error>

#include "attention_op.h"
#include "gather_op.h"
#include "matmul_op.h"
#include "pard/error.h"

namespace pard {

namespace {

// Inputs of GroupQueryAttention, where it has them.
constexpr std::size_t positions_input = 9;
constexpr std::size_t bias_input = 10;
constexpr std::size_t norm_input = 14;

// The fields of one protobuf message.
class Message {
 public:
  struct Field {
    std::uint64_t number = 0;
    std::optional<std::string_view> bytes{};  // of a length-delimited field
    std::uint64_t value = 0;                  // of an integer, or the bits of a float
  };

  Message(std::string_view bytes, const std::string& file) : rest_(bytes), file_(file) {}

  std::optional<Field> next() {
    if (rest_.empty()) {
      return std::nullopt;
    }
    const std::uint64_t key = varint();
    Field field{.number = key >> 3};
    switch (key & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      case 5:
        for (const char byte : take(4)) {  // the last one is the highest
          field.value = field.value >> 8 | std::uint64_t{static_cast<unsigned char>(byte)} << 24;
        }
        break;
      default:
        fail();
    }
    if (field.number == 0) {
      fail();
    }
    return field;
  }

  // The integers of a field that is repeated: one by one, or all in one.
  void append(const Field& field, std::vector<std::int64_t>& integers) const {
    if (!field.bytes) {
      integers.push_back(static_cast<std::int64_t>(field.value));
      return;
    }
    for (Message packed = inside(field); !packed.rest_.empty();) {
      integers.push_back(static_cast<std::int64_t>(packed.varint()));
    }
  }

  Message inside(const Field& field) const { return {*field.bytes, file_}; }

  [[noreturn]] void fail() const {
    throw FolderError({"'" + file_ + "' cannot be read", "an ONNX graph",
                       "something else, or a file cut short", "Copy or export the folder again."});
  }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) {
        return value;
      }
    }
    fail();
  }

  std::string_view take(std::uint64_t size) {
    if (size > rest_.size()) {
      fail();
    }
    const std::string_view taken = rest_.substr(0, static_cast<std::size_t>(size));
    rest_.remove_prefix(taken.size());
    return taken;
  }

  std::string_view rest_;
  const std::string& file_;
};

// A file's bytes, mapped: a graph may hold gigabytes of weights that nobody looks at here.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    std::error_code error;
    const std::uintmax_t size = std::filesystem::file_size(path, error);
    if (file >= 0 && !error && size > 0) {
      void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
      if (data != MAP_FAILED) {
        bytes_ = {static_cast<const char*>(data), size};
      }
    }
    if (file >= 0) {
      ::close(file);
    }
    if (bytes_.empty()) {
      throw FolderError({"The graph of a model folder is missing",
                         "a graph in the file '" + path.string() + "'",
                         "nothing that can be read there", "Copy or export the folder again."});
    }
  }
  ~MappedFile() { ::munmap(const_cast<char*>(bytes_.data()), bytes_.size()); }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return bytes_; }

 private:
  std::string_view bytes_;
};

std::uint64_t to_number(std::string_view text) {
  std::uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

struct Weight {
  std::string_view name;
  ort::ElementType type{};
  std::vector<std::int64_t> shape{};
};
using Weights = std::map<std::string_view, Weight>;

// TensorProto: dims = 1, data_type = 2, name = 8, external_data = 13, each a key = 1 and a value
// = 2.
Weight summarize_tensor(Message tensor, OnnxFileSummary& summary) {
  Weight summarized;
  std::map<std::string_view, std::string_view> external;
  while (const auto field = tensor.next()) {
    if (field->number == 1) tensor.append(*field, summarized.shape);
    if (field->number == 8 && field->bytes) summarized.name = *field->bytes;
    if (field->number == 2) summarized.type = static_cast<ort::ElementType>(field->value);
    if (field->number != 13 || !field->bytes) {
      continue;
    }
    Message entry = tensor.inside(*field);
    std::array<std::string_view, 2> key_value;
    while (const auto part = entry.next()) {
      if (part->bytes && (part->number == 1 || part->number == 2)) {
        key_value[part->number - 1] = *part->bytes;
      }
    }
    external[key_value[0]] = key_value[1];
  }
  if (const auto location = external.find("location"); location != external.end()) {
    std::uint64_t& needed = summary.external_data[std::string(location->second)];
    const std::uint64_t begin = to_number(external["offset"]);
    const std::uint64_t length = to_number(external["length"]);
    needed = std::max(needed, begin + std::min(length, ~begin));
  }
  return summarized;
}

struct Attribute {
  std::string_view name;
  std::int64_t value = 0;  // or the bits of a float
  std::string_view text;
};

// Whether an attribute of GroupQueryAttention asks for nothing that attention_op.h lacks.
bool is_plain(const Attribute& attribute) {
  constexpr std::array<std::string_view, 7> any = {
      "num_heads", "kv_num_heads",       "scale",         "softcap",
      "do_rotary", "rotary_interleaved", "smooth_softmax"};
  constexpr std::array<std::string_view, 2> on = {"causal", "unidirectional"};
  constexpr std::array<std::string_view, 5> off = {
      "sliding_window_cache", "qk_output", "k_quant_type", "v_quant_type", "kv_cache_bit_width"};
  const auto holds = [&](const auto& names) {
    return std::find(names.begin(), names.end(), attribute.name) != names.end();
  };
  const bool is_off = (attribute.value == 0 || attribute.value == -1) &&
                      (attribute.text.empty() || attribute.text == "NONE");
  // ONNX Runtime lets a window of 0 see nothing, and a negative one everything.
  const bool is_window = attribute.name == "local_window_size" && attribute.value != 0;
  return holds(any) || is_window || (holds(on) && attribute.value == 1) || (holds(off) && is_off);
}

using Attributes = std::map<std::string_view, std::int64_t>;

// A node with blocks of integers, whose inputs' types are known when the graph has been walked.
struct BlockNode {
  bool is_product = true;  // MatMulNBits; else GatherBlockQuantized
  std::array<std::string_view, matmul_op_inputs> inputs{};
  std::int64_t bits = 0;
  std::int64_t block = 0;
  bool is_plain = false;  // as far as its attributes say

  bool takes(const Weights& weights) const;
};
static_assert(gather_op_inputs <= matmul_op_inputs);

// What the attributes of such a node say, those not named at 0, and whether ours take them.
BlockNode read_block_node(bool is_product, Attributes attributes) {
  const auto take = [&](std::string_view name, std::int64_t otherwise) {
    const auto found = attributes.find(name);
    const std::int64_t value = found == attributes.end() ? otherwise : found->second;
    attributes.erase(name);
    return value;
  };
  BlockNode node{.is_product = is_product,
                 .bits = take("bits", 4),
                 .block = take("block_size", is_product ? 0 : 128)};
  const std::int64_t block = node.block;
  node.is_plain = (node.bits == 4 || node.bits == 8) &&
                  (block == 16 || block == 32 || block == 64 || block == 128);
  if (is_product) {
    node.is_plain &= take("accuracy_level", 0) == 4;
    take("K", 0);
    take("N", 0);
  } else {
    node.is_plain &= take("quantize_axis", 1) == 1;
  }
  node.is_plain &= std::all_of(attributes.begin(), attributes.end(),
                               [](const auto& other) { return other.second == 0; });
  return node;
}

// Whether its weights are constants that ours take.
bool BlockNode::takes(const Weights& weights) const {
  using enum ort::ElementType;
  const auto is = [&](std::size_t index, std::initializer_list<ort::ElementType> types) {
    const auto found = weights.find(inputs[index]);
    return found != weights.end() &&
           std::find(types.begin(), types.end(), found->second.type) != types.end();
  };
  const auto may_be = [&](std::size_t index, ort::ElementType type) {
    return inputs[index].empty() || is(index, {type});
  };
  const std::size_t own = is_product ? first_own_matmul_input : first_own_gather_input;
  const std::size_t integers = is_product ? 1 : 0;
  if (!is_plain || !is(integers, {u8}) || !may_be(3, u8)) return false;
  if (is_product && !(inputs[4].empty() && may_be(5, f32))) return false;
  if (!inputs[own + 1].empty()) {
    return is(2, {i8}) && may_be(own, i8) && is(own + 1, {f16}) && may_be(own + 2, f16);
  }
  const bool plain = is(2, {f32, f16}) && inputs[own + 2].empty() &&
                     (inputs[own].empty() || is(own, {weights.at(inputs[2]).type}));
  const std::vector<std::int64_t>& shape = weights.at(inputs[integers]).shape;
  if (is_product || shape.size() == 3) return plain;
  // ONNX Runtime's own: scales have the type of the rows, and blocks need not be whole.
  return plain && inputs[own].empty() && is(2, {f32}) && shape.size() == 2 &&
         shape[1] % (block * bits / 8) == 0;
}

void summarize_graph(Message graph, OnnxFileSummary& summary, int depth);

// AttributeProto: name = 1, f = 2, i = 3, s = 4, g = 6, graphs = 11.
Attribute read_attribute(Message message, OnnxFileSummary& summary, int depth) {
  Attribute attribute;
  while (const auto field = message.next()) {
    if (field->number == 1 && field->bytes) {
      attribute.name = *field->bytes;
    } else if (field->number == 4 && field->bytes) {
      attribute.text = *field->bytes;
    } else if ((field->number == 2 || field->number == 3) && !field->bytes) {
      attribute.value = static_cast<std::int64_t>(field->value);
    } else if ((field->number == 6 || field->number == 11) && field->bytes) {
      summarize_graph(message.inside(*field), summary, depth + 1);
    }
  }
  return attribute;
}

// NodeProto: input = 1, output = 2, op_type = 4, attribute = 5. `depth`: graphs it lies inside.
void summarize_node(Message node, OnnxFileSummary& summary, int depth,
                    std::vector<BlockNode>& block_nodes) {
  std::string_view op_type;
  std::array<std::size_t, 2> counts{};
  std::array<std::size_t, 2> given{};  // inputs and outputs, up to the last that has a name
  std::array<std::string_view, matmul_op_inputs> inputs;
  bool has_positions_or_bias = false;
  bool plain = depth == 0;
  Attributes values;
  while (const auto part = node.next()) {
    if (!part->bytes) continue;
    if (part->number == 1 || part->number == 2) {
      const std::size_t which = part->number - 1;
      const std::size_t index = counts[which]++;
      if (which == 0 && index < inputs.size()) inputs[index] = *part->bytes;
      if (part->bytes->empty()) continue;
      given[which] = counts[which];
      has_positions_or_bias |= which == 0 && (index == positions_input || index == bias_input);
    } else if (part->number == 4) {
      op_type = *part->bytes;
    } else if (part->number == 5) {
      const Attribute attribute = read_attribute(node.inside(*part), summary, depth);
      plain = is_plain(attribute) && plain;
      values[attribute.name] = attribute.value;
    }
  }
  if (depth == 0) summary.op_types.emplace(op_type);
  if (op_type == "GroupQueryAttention") {
    summary.attention_is_plain &= plain && !has_positions_or_bias &&
                                  given[0] <= attention_op_inputs &&
                                  given[1] <= attention_op_outputs;
    summary.attention_normalizes |= given[0] > norm_input;
    summary.attention_has_windows |= values["local_window_size"] > 0;
    if (values["sliding_window_cache"] != 0) {
      summary.dropping_window = std::max(summary.dropping_window, values["local_window_size"]);
    }
  } else if (op_type == "MatMulNBits" || op_type == "QMoE") {
    const char* bits = op_type == "QMoE" ? "expert_weight_bits" : "bits";
    summary.weight_bits.insert(values.contains(bits) ? values[bits] : 4);
    summary.weights_are_prepacked |=
        values["weight_prepacked"] > 0 || values["weights_prepacked"] > 0;
  }
  const bool is_product = op_type == "MatMulNBits";
  if (is_product || op_type == "GatherBlockQuantized") {
    BlockNode block_node = read_block_node(is_product, values);
    block_node.inputs = inputs;
    block_node.is_plain &=
        depth == 0 && given[0] <= (is_product ? matmul_op_inputs : gather_op_inputs);
    summary.products_are_ours |=
        given[0] > (is_product ? first_own_matmul_input : first_own_gather_input);
    summary.has_gathers |= !is_product;
    summary.gathers_name_bits |= !is_product && values.contains("bits");
    block_nodes.push_back(block_node);
  }
}

// ValueInfoProto: name = 1, type = 2; TypeProto: tensor_type = 1; its elem_type = 1, shape = 2;
// TensorShapeProto: dim = 1; its dim_value = 1.
TensorSpec read_value_info(Message value) {
  TensorSpec spec;
  const auto read_shape = [](Message shape) {
    std::vector<std::int64_t> sizes;
    while (const auto dimension = shape.next()) {
      if (dimension->number != 1 || !dimension->bytes) continue;
      sizes.push_back(-1);
      Message fields = shape.inside(*dimension);
      while (const auto field = fields.next()) {
        if (field->number == 1 && !field->bytes) {
          sizes.back() = static_cast<std::int64_t>(field->value);
        }
      }
    }
    return sizes;
  };
  const auto read_tensor = [&](Message tensor) {
    while (const auto field = tensor.next()) {
      if (field->number == 1 && !field->bytes) {
        spec.type = static_cast<ort::ElementType>(field->value);
      } else if (field->number == 2 && field->bytes) {
        spec.shape = read_shape(tensor.inside(*field));
      }
    }
  };
  while (const auto field = value.next()) {
    if (field->number == 1 && field->bytes) {
      spec.name = *field->bytes;
    } else if (field->number == 2 && field->bytes) {
      Message type = value.inside(*field);
      while (const auto tensor = type.next()) {
        if (tensor->number == 1 && tensor->bytes) read_tensor(type.inside(*tensor));
      }
    }
  }
  return spec;
}

// GraphProto: node = 1, initializer = 5, input = 11, output = 12.
void summarize_graph(Message graph, OnnxFileSummary& summary, int depth) {
  if (depth > 32) graph.fail();
  Weights weights;
  std::vector<BlockNode> block_nodes;
  while (const auto field = graph.next()) {
    if (!field->bytes) {
      continue;
    }
    if (field->number == 5) {
      Weight weight = summarize_tensor(graph.inside(*field), summary);
      weights[weight.name] = std::move(weight);
    } else if (field->number == 1) {
      summarize_node(graph.inside(*field), summary, depth, block_nodes);
    } else if (field->number == 11 && depth == 0) {
      summary.inputs.push_back(read_value_info(graph.inside(*field)));
    } else if (field->number == 12 && depth == 0) {
      summary.outputs.push_back(read_value_info(graph.inside(*field)));
    }
  }
  for (const BlockNode& node : block_nodes) {
    (node.is_product ? summary.products_are_plain : summary.gathers_are_plain) &=
        node.takes(weights);
    const auto table = weights.find(node.inputs[0]);
    summary.products_are_ours |=
        !node.is_product && table != weights.end() && table->second.shape.size() > 2;
  }
  if (depth > 0) return;
  // Old files list weights as inputs too.
  std::erase_if(summary.inputs,
                [&](const TensorSpec& input) { return weights.contains(input.name); });
}

// FunctionProto: node = 7.
void summarize_function(Message function, OnnxFileSummary& summary) {
  std::vector<BlockNode> block_nodes;
  while (const auto field = function.next()) {
    if (field->number != 7 || !field->bytes) continue;
    summarize_node(function.inside(*field), summary, 1, block_nodes);
  }
  for (const BlockNode& node : block_nodes) {
    (node.is_product ? summary.products_are_plain : summary.gathers_are_plain) = false;
  }
}

}  // namespace

OnnxFileSummary summarize_onnx(std::string_view bytes, const std::string& file) {
  if (bytes.starts_with("version https://git-lfs")) {
    throw FolderError({"'" + file + "' holds no graph", "an ONNX graph", "a Git LFS pointer",
                       "Fetch the real file: git lfs pull."});
  }
  OnnxFileSummary summary;
  Message model(bytes, file);
  bool has_graph = false;
  while (const auto field = model.next()) {
    if (field->number == 7 && field->bytes) {  // ModelProto.graph
      has_graph = true;
      summarize_graph(model.inside(*field), summary, 0);
    } else if (field->number == 25 && field->bytes) {  // .functions
      summarize_function(model.inside(*field), summary);
    }
  }
  if (!has_graph) {
    model.fail();
  }
  // Keys and values are among the inputs: where one is of another floating-point type, they are.
  for (const TensorSpec& input : summary.inputs) {
    using enum ort::ElementType;
    const bool plain = input.type == f32 || input.type == i32 || input.type == i64;
    summary.attention_is_plain &= plain;
    summary.products_are_plain &= plain;
    summary.gathers_are_plain &= plain;
  }
  return summary;
}

OnnxFileSummary check_onnx_file(const std::filesystem::path& path) {
  OnnxFileSummary summary = summarize_onnx(MappedFile(path).bytes(), path.string());
  std::error_code error;
  for (const auto& [location, needed] : summary.external_data) {
    const std::filesystem::path data = path.parent_path() / location;
    const std::uint64_t present = std::filesystem::file_size(data, error);
    if (error || present < needed) {
      throw FolderError(
          {"Weights of '" + path.string() + "' are missing",
           "a file '" + data.string() + "' of at least " + std::to_string(needed) + " bytes",
           error ? "no such file" : std::to_string(present) + " bytes",
           "Copy the whole folder again, the .data files included."});
    }
  }
  return summary;
}

}  // namespace pard
