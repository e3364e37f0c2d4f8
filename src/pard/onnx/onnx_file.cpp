#include "onnx_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <system_error>

#include "pard/error.h"

namespace pard {

namespace {

// The fields of one protobuf message.
class Message {
 public:
  struct Field {
    std::uint64_t number = 0;
    std::optional<std::string_view> bytes;  // of a length-delimited field
  };

  Message(std::string_view bytes, const std::string& file) : rest_(bytes), file_(file) {}

  std::optional<Field> next() {
    if (rest_.empty()) {
      return std::nullopt;
    }
    const std::uint64_t key = varint();
    Field field{.number = key >> 3, .bytes = std::nullopt};
    switch (key & 7) {
      case 0:
        varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      case 5:
        take(4);
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

// GraphProto: node = 1 (NodeProto: op_type = 4), initializer = 5.
void summarize_graph(Message graph, OnnxFileSummary& summary) {
  while (const auto field = graph.next()) {
    if (!field->bytes) {
      continue;
    }
    if (field->number == 5) {
      summarize_tensor(graph.inside(*field), summary);
    } else if (field->number == 1) {
      Message node = graph.inside(*field);
      while (const auto part = node.next()) {
        if (part->number == 4 && part->bytes) {
          summary.op_types.emplace(*part->bytes);
        }
      }
    }
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
      summarize_graph(model.inside(*field), summary);
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
