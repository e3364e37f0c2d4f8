#include "session.h"

#include <cstdlib>
#include <limits>
#include <new>
#include <utility>

#include "pard/error.h"

namespace pard {

namespace {

constexpr int all_optimizations = 99;
constexpr int device_allocator = 0;
constexpr int default_memory = 0;

ort::Handle<ort::MemoryInfo> memory_info(const OrtLibrary& library, const char* name, int device) {
  ort::MemoryInfo* info = nullptr;
  library.check(
      library.api().create_memory_info(name, device_allocator, device, default_memory, &info),
      "describe memory");
  return {info, library.api().release_memory_info};
}

int device_id(const SessionOptions& options) {
  const auto found = options.provider_options.find("device_id");
  return found == options.provider_options.end() ? 0 : std::atoi(found->second.c_str());
}

// The options as the C API takes them.
struct KeysAndValues {
  explicit KeysAndValues(const std::map<std::string, std::string>& options) {
    for (const auto& [key, value] : options) {
      keys.push_back(key.c_str());
      values.push_back(value.c_str());
    }
  }
  std::vector<const char*> keys;
  std::vector<const char*> values;
};

}  // namespace

Session::Session(std::shared_ptr<const OrtLibrary> library, const std::filesystem::path& graph,
                 const SessionOptions& options)
    : library_(std::move(library)),
      host_memory_(memory_info(*library_, "Cpu", 0)),
      device_memory_(nullptr, library_->api().release_memory_info) {
  if (options.intra_op_threads < 0) {
    throw InvalidArgument({"The number of threads cannot be used", "0 or more",
                           std::to_string(options.intra_op_threads),
                           "0 leaves it to ONNX Runtime."});
  }
  const ort::Api& api = library_->api();
  const auto check = [&](ort::Status* status) { library_->check(status, "set session options"); };
  ort::SessionOptions* raw = nullptr;
  check(api.create_session_options(&raw));
  const ort::Handle<ort::SessionOptions> settings(raw, api.release_session_options);
  check(api.set_graph_optimization_level(raw, all_optimizations));
  check(api.set_intra_op_num_threads(raw, options.intra_op_threads));
  const char* spinning = options.spinning ? "1" : "0";
  check(api.add_session_config_entry(raw, "session.intra_op.allow_spinning", spinning));
  // Of a draft and a target only one runs at a time: its threads must not spin into the other's.
  check(api.add_session_config_entry(raw, "session.force_spinning_stop", spinning));
  // Constants are folded at load however large they are: by default not where it makes a gigabyte,
  // and weights stored in another type would be converted anew in every forward.
  check(api.add_session_config_entry(raw, "optimization.constant_folding_max_output_size_in_bytes",
                                     "0"));
  if (options.dequantize_weights) {
    check(api.add_session_config_entry(raw, "session.disable_quant_qdq", "1"));
  }
  append_provider(raw, options);

  ort::Session* session = nullptr;
  library_->check(api.create_session(library_->env(), graph.c_str(), raw, &session),
                  "open '" + graph.string() + "'",
                  "A graph newer than the runtime needs: pip install -U onnxruntime.");
  // The library outlives its session.
  session_ = {session, [kept = library_](ort::Session* s) { kept->api().release_session(s); }};
  inputs_ = describe(true);
  outputs_ = describe(false);

  if (options.provider != "cpu") {
    device_memory_ =
        memory_info(*library_, options.provider == "cuda" ? "Cuda" : "Hip", device_id(options));
    ort::Allocator* allocator = nullptr;
    library_->check(api.create_allocator(session, device_memory_.get(), &allocator),
                    "allocate memory of the provider '" + options.provider + "'");
    device_allocator_ = {allocator, [kept = library_, owner = session_](ort::Allocator* a) {
                           kept->api().release_allocator(a);
                         }};
  }
}

void Session::append_provider(ort::SessionOptions* session_options,
                              const SessionOptions& options) const {
  const ort::Api& api = library_->api();
  const KeysAndValues pairs(options.provider_options);
  const std::size_t count = pairs.keys.size();
  if (options.provider == "cpu") {
    return;
  }
  const auto check = [&](ort::Status* status) {
    library_->check(status, "use the provider '" + options.provider + "'",
                    "Check the GPU's driver, the libraries this build of ONNX Runtime needs and "
                    "the provider's options.");
  };
  if (options.provider == "cuda") {
    ort::CudaOptions* raw = nullptr;
    check(api.create_cuda_options(&raw));
    const ort::Handle<ort::CudaOptions> cuda(raw, api.release_cuda_options);
    check(api.update_cuda_options(raw, pairs.keys.data(), pairs.values.data(), count));
    check(api.append_cuda(session_options, raw));
    return;
  }
  // With a device and nothing else, the function every build for AMD exports will do; the general
  // one knows these providers only in later versions.
  const bool migraphx = options.provider == "migraphx";
  void* append = library_->symbol(migraphx ? "OrtSessionOptionsAppendExecutionProvider_MIGraphX"
                                           : "OrtSessionOptionsAppendExecutionProvider_ROCM");
  if (append != nullptr && count == options.provider_options.count("device_id")) {
    using Append = ort::Status* (*)(ort::SessionOptions*, int);
    check(reinterpret_cast<Append>(append)(session_options, device_id(options)));
  } else {
    check(api.append_provider(session_options, migraphx ? "MIGraphX" : "ROCM", pairs.keys.data(),
                              pairs.values.data(), count));
  }
}

std::vector<TensorSpec> Session::describe(bool of_inputs) const {
  const ort::Api& api = library_->api();
  const auto check = [&](ort::Status* status) { library_->check(status, "describe the graph"); };
  const ort::Session* session = session_.get();
  ort::Allocator* allocator = nullptr;
  check(api.get_default_allocator(&allocator));
  std::size_t count = 0;
  check((of_inputs ? api.get_input_count : api.get_output_count)(session, &count));

  std::vector<TensorSpec> specs(count);
  for (std::size_t i = 0; i < count; ++i) {
    TensorSpec& spec = specs[i];
    char* name = nullptr;
    check((of_inputs ? api.get_input_name : api.get_output_name)(session, i, allocator, &name));
    spec.name = name;
    check(api.allocator_free(allocator, name));

    ort::TypeInfo* raw = nullptr;
    check((of_inputs ? api.get_input_type_info : api.get_output_type_info)(session, i, &raw));
    const ort::Handle<ort::TypeInfo> type(raw, api.release_type_info);
    const ort::TensorInfo* tensor = nullptr;
    check(api.cast_type_info_to_tensor_info(raw, &tensor));
    if (tensor == nullptr) {  // a sequence, a map: no contract has one
      continue;
    }
    std::size_t rank = 0;
    check(api.get_element_type(tensor, &spec.type));
    check(api.get_dimensions_count(tensor, &rank));
    spec.shape.resize(rank);
    check(api.get_dimensions(tensor, spec.shape.data(), rank));
  }
  return specs;
}

ort::Handle<ort::Value> Session::tensor(Place place, void* data, ort::ElementType type,
                                        std::span<const std::int64_t> shape) const {
  std::size_t bytes = size_of(type);
  for (const std::int64_t dimension : shape) {
    bytes *= static_cast<std::size_t>(dimension);
  }
  const ort::MemoryInfo* memory =
      place == Place::device && on_device() ? device_memory_.get() : host_memory_.get();
  ort::Value* value = nullptr;
  library_->check(library_->api().create_tensor_with_data(memory, data, bytes, shape.data(),
                                                          shape.size(), type, &value),
                  "make a tensor");
  return {value, library_->api().release_value};
}

MemoryBlock Session::allocate(Place place, std::size_t bytes) const {
  if (place == Place::host || !on_device()) {
    // Fresh pages of calloc are zero without being touched, so a large buffer costs nothing unused.
    constexpr std::size_t alignment = 64;
    if (bytes > std::numeric_limits<std::size_t>::max() - alignment) {
      throw std::bad_alloc();
    }
    std::shared_ptr<void> owner(std::calloc(bytes + alignment, 1), std::free);
    if (owner == nullptr) {
      throw std::bad_alloc();
    }
    std::size_t space = bytes + alignment;
    void* data = owner.get();
    std::align(alignment, bytes, data, space);
    return {static_cast<std::byte*>(data), bytes, std::move(owner)};
  }
  void* data = nullptr;
  library_->check(library_->api().allocator_alloc(device_allocator_.get(), bytes, &data),
                  "allocate " + std::to_string(bytes) + " bytes of device memory");
  std::shared_ptr<void> owner(data, [library = library_, allocator = device_allocator_](void* p) {
    library->api().release_status(library->api().allocator_free(allocator.get(), p));
  });
  return {static_cast<std::byte*>(data), bytes, std::move(owner)};
}

void Session::run(std::span<const char* const> input_names,
                  std::span<const ort::Value* const> inputs,
                  std::span<const char* const> output_names,
                  std::span<ort::Value* const> outputs) const {
  // The C API takes the array of outputs as one it may fill; it fills only places that are null.
  library_->check(library_->api().run(session_.get(), nullptr, input_names.data(), inputs.data(),
                                      inputs.size(), output_names.data(), outputs.size(),
                                      const_cast<ort::Value**>(outputs.data())),
                  "run the graph");
}

std::size_t size_of(ort::ElementType type) {
  switch (type) {
    case ort::ElementType::f16:
      return 2;
    case ort::ElementType::i64:
      return 8;
    default:
      return 4;
  }
}

std::string name_of(ort::ElementType type) {
  switch (type) {
    case ort::ElementType::f32:
      return "float32";
    case ort::ElementType::i32:
      return "int32";
    case ort::ElementType::i64:
      return "int64";
    case ort::ElementType::f16:
      return "float16";
  }
  return "element type " + std::to_string(static_cast<int>(type));
}

}  // namespace pard
