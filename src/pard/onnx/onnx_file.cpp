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
#include "pard/error.h"

namespace pard {

namespace {

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

// TensorProto: external_data = 13, each a key = 1 and a value = 2.
void summarize_tensor(Message tensor, OnnxFileSummary& summary) {
  std::map<std::string_view, std::string_view> external;
  while (const auto field = tensor.next()) {
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
}

// Whether an attribute of GroupQueryAttention asks for nothing that attention_op.h lacks.
bool is_plain(std::string_view name, std::uint64_t value, std::string_view text) {
  constexpr std::array<std::string_view, 6> any = {
      "num_heads", "kv_num_heads", "scale", "softcap", "do_rotary", "rotary_interleaved"};
  constexpr std::array<std::string_view, 2> on = {"causal", "unidirectional"};
  constexpr std::array<std::string_view, 7> off = {
      "local_window_size", "smooth_softmax", "sliding_window_cache", "qk_output",
      "k_quant_type",      "v_quant_type",   "kv_cache_bit_width"};
  const auto holds = [&](const auto& names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  const bool is_off = (value == 0 || ~value == 0) && (text.empty() || text == "NONE");  // 0 or -1
  return holds(any) || (holds(on) && value == 1) || (holds(off) && is_off);
}

void summarize_graph(Message graph, OnnxFileSummary& summary, int depth);

// AttributeProto: name = 1, f = 2, i = 3, s = 4, g = 6, graphs = 11. Says whether it is plain.
bool summarize_attribute(Message attribute, OnnxFileSummary& summary, int depth) {
  std::string_view name;
  std::string_view text;
  std::uint64_t value = 0;
  while (const auto field = attribute.next()) {
    if (field->number == 1 && field->bytes) {
      name = *field->bytes;
    } else if (field->number == 4 && field->bytes) {
      text = *field->bytes;
    } else if ((field->number == 2 || field->number == 3) && !field->bytes) {
      value = field->value;
    } else if ((field->number == 6 || field->number == 11) && field->bytes) {
      summarize_graph(attribute.inside(*field), summary, depth + 1);
    }
  }
  return is_plain(name, value, text);
}

// NodeProto: input = 1, output = 2, op_type = 4, attribute = 5. `depth`: graphs it lies inside.
void summarize_node(Message node, OnnxFileSummary& summary, int depth) {
  std::string_view op_type;
  std::array<std::size_t, 2> counts{};
  std::array<std::size_t, 2> given{};  // inputs and outputs, up to the last that has a name
  bool plain = depth == 0;
  while (const auto part = node.next()) {
    if (!part->bytes) continue;
    if (part->number == 1 || part->number == 2) {
      const std::size_t which = part->number - 1;
      ++counts[which];
      if (!part->bytes->empty()) given[which] = counts[which];
    } else if (part->number == 4) {
      op_type = *part->bytes;
    } else if (part->number == 5) {
      plain = summarize_attribute(node.inside(*part), summary, depth) && plain;
    }
  }
  if (depth == 0) summary.op_types.emplace(op_type);
  if (op_type == "GroupQueryAttention" &&
      !(plain && given[0] <= attention_op_inputs && given[1] <= attention_op_outputs)) {
    summary.attention_is_plain = false;
  }
}

// ValueInfoProto: type = 2; TypeProto: tensor_type = 1; its elem_type = 1. A graph's keys and
// values are among its inputs: where one is of another floating-point type, they are.
void summarize_input(Message input, OnnxFileSummary& summary) {
  while (const auto type = input.next()) {
    if (type->number != 2 || !type->bytes) continue;
    Message inside = input.inside(*type);
    while (const auto tensor = inside.next()) {
      if (tensor->number != 1 || !tensor->bytes) continue;
      Message fields = inside.inside(*tensor);
      while (const auto field = fields.next()) {
        if (field->number != 1 || field->bytes) continue;
        const auto element = static_cast<ort::ElementType>(field->value);
        using enum ort::ElementType;
        if (element != f32 && element != i32 && element != i64) summary.attention_is_plain = false;
      }
    }
  }
}

// GraphProto: node = 1, initializer = 5, input = 11.
void summarize_graph(Message graph, OnnxFileSummary& summary, int depth) {
  if (depth > 32) graph.fail();
  while (const auto field = graph.next()) {
    if (!field->bytes) {
      continue;
    }
    if (field->number == 5) {
      summarize_tensor(graph.inside(*field), summary);
    } else if (field->number == 1) {
      summarize_node(graph.inside(*field), summary, depth);
    } else if (field->number == 11 && depth == 0) {
      summarize_input(graph.inside(*field), summary);
    }
  }
}

// FunctionProto: node = 7.
void summarize_function(Message function, OnnxFileSummary& summary) {
  while (const auto field = function.next()) {
    if (field->number == 7 && field->bytes) summarize_node(function.inside(*field), summary, 1);
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
