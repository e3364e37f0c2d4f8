#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory.h"
#include "ort_api.h"

namespace pard {

struct SessionOptions {
  std::string provider = "cpu";                         // cpu, cuda, migraphx, rocm
  std::map<std::string, std::string> provider_options;  // ONNX Runtime's own keys for it
  int intra_op_threads = 0;  // threads of one forward; 0: one for every physical core
  bool spinning = true;      // threads of a forward wait by spinning, and sleep after it

  // Weights behind DequantizeLinear become floats on opening, and no integer kernel takes them.
  bool dequantize_weights = false;

  // GroupQueryAttention is computed by attention_op.h, MatMulNBits by matmul_op.h,
  // GatherBlockQuantized by gather_op.h.
  bool own_attention = false;
  bool own_matmul = false;
  bool own_gather = false;
  std::string logits = "logits";  // the graph's output of logits

  int device_id() const;  // of the provider's options; 0 where they do not say
};

// An input or output of a graph; a dimension that is not fixed is -1.
struct TensorSpec {
  std::string name;
  ort::ElementType type{};
  std::optional<std::vector<std::int64_t>> shape;  // absent: the file does not say
};

// A graph that lies in memory, as the file would hold it.
struct GraphBytes {
  std::string bytes;
};

// An ONNX Runtime session: a graph made ready to run on one provider.
class Session {
 public:
  // Throws ModelError where ONNX Runtime refuses the graph, the provider or its options.
  Session(std::shared_ptr<const OrtLibrary> library, const std::filesystem::path& graph,
          const SessionOptions& options);
  Session(std::shared_ptr<const OrtLibrary> library, const GraphBytes& graph,
          const SessionOptions& options);

  const OrtLibrary& library() const { return *library_; }
  const ort::Session* handle() const { return session_.get(); }

  // A tensor over memory that stays the caller's.
  ort::Handle<ort::Value> tensor(const Memory& memory, void* data, ort::ElementType type,
                                 std::span<const std::int64_t> shape) const;
  ort::Handle<ort::Value> tensor(const Memory& memory, void* data, ort::ElementType type,
                                 std::initializer_list<std::int64_t> shape) const {
    return tensor(memory, data, type, std::span(shape.begin(), shape.size()));
  }

  // Outputs are written where their tensors say. The first `unread_logits` rows of logits may be
  // left as they are.
  void run(std::span<const char* const> input_names, std::span<const ort::Value* const> inputs,
           std::span<const char* const> output_names, std::span<ort::Value* const> outputs,
           std::int64_t unread_logits = 0) const;

 private:
  struct OwnOps;
  using Create = std::function<ort::Status*(const ort::SessionOptions*, ort::Session**)>;

  void open(const SessionOptions& options, const std::string& what, const Create& create);
  void append_provider(ort::SessionOptions* session_options, const SessionOptions& options) const;

  std::shared_ptr<const OrtLibrary> library_;
  std::shared_ptr<OwnOps> own_ops_;
  std::shared_ptr<ort::Session> session_;
};

std::size_t size_of(ort::ElementType type);
std::string name_of(ort::ElementType type);

}  // namespace pard
