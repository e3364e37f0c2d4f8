#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ort_api.h"

namespace pard {

struct SessionOptions {
  std::string provider = "cpu";                         // cpu, cuda, migraphx, rocm
  std::map<std::string, std::string> provider_options;  // ONNX Runtime's own keys for it
  int intra_op_threads = 0;  // threads of one forward; 0: one for every physical core
  bool spinning = false;     // threads wait by spinning: for machines with nothing else to do

  // Weights behind DequantizeLinear become floats on opening, and no integer kernel takes them.
  bool dequantize_weights = false;
};

// An input or output of a graph; a dimension that is not fixed is -1.
struct TensorSpec {
  std::string name;
  ort::ElementType type{};
  std::vector<std::int64_t> shape;
};

// Where bytes lie. A provider without memory of its own has the host's for both.
enum class Place : std::uint8_t { host, device };

// Memory of the host or of the provider's device; copies share it.
class MemoryBlock {
 public:
  MemoryBlock() = default;
  MemoryBlock(std::byte* data, std::size_t size, std::shared_ptr<void> owner)
      : data_(data), size_(size), owner_(std::move(owner)) {}

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::shared_ptr<void> owner_;
};

// An ONNX Runtime session: a graph made ready to run on one provider.
class Session {
 public:
  // Throws ModelError where ONNX Runtime refuses the graph, the provider or its options.
  Session(std::shared_ptr<const OrtLibrary> library, const std::filesystem::path& graph,
          const SessionOptions& options);

  const std::vector<TensorSpec>& inputs() const { return inputs_; }
  const std::vector<TensorSpec>& outputs() const { return outputs_; }
  bool on_device() const { return device_memory_ != nullptr; }

  // A tensor over memory that stays the caller's.
  ort::Handle<ort::Value> tensor(Place place, void* data, ort::ElementType type,
                                 std::span<const std::int64_t> shape) const;
  ort::Handle<ort::Value> tensor(Place place, void* data, ort::ElementType type,
                                 std::initializer_list<std::int64_t> shape) const {
    return tensor(place, data, type, std::span(shape.begin(), shape.size()));
  }

  // Zeroed on the host, as it comes on a device.
  MemoryBlock allocate(Place place, std::size_t bytes) const;

  // Outputs are written where their tensors say.
  void run(std::span<const char* const> input_names, std::span<const ort::Value* const> inputs,
           std::span<const char* const> output_names, std::span<ort::Value* const> outputs) const;

 private:
  void append_provider(ort::SessionOptions* session_options, const SessionOptions& options) const;
  std::vector<TensorSpec> describe(bool of_inputs) const;

  std::shared_ptr<const OrtLibrary> library_;
  std::shared_ptr<ort::Session> session_;
  ort::Handle<ort::MemoryInfo> host_memory_;
  ort::Handle<ort::MemoryInfo> device_memory_;  // null: the provider works on host memory
  std::shared_ptr<ort::Allocator> device_allocator_;
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
};

std::size_t size_of(ort::ElementType type);
std::string name_of(ort::ElementType type);

}  // namespace pard
