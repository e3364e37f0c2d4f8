#include "session.h"

#include <charconv>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "attention_op.h"
#include "gather_op.h"
#include "matmul_op.h"
#include "pard/error.h"

namespace pard {

int SessionOptions::device_id() const {
  const auto found = provider_options.find("device_id");
  if (found == provider_options.end()) return 0;
  const std::string& text = found->second;
  int device = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), device);
  if (error != std::errc() || end != text.data() + text.size() || device < 0) {
    throw InvalidArgument({"The provider option device_id cannot be used", "a number from 0 on",
                           "'" + text + "'", "Pass the index of a card, such as '0'."});
  }
  return device;
}

namespace {

constexpr int all_optimizations = 99;

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

// Operators of ours, and the domain a session looks for them in.
struct Session::OwnOps {
  OwnOps(const OrtLibrary& library, const SessionOptions& options)
      : attention(library.api()),
        matmul(library.api(), options.intra_op_threads, options.logits),
        gather(library.api(), options.intra_op_threads) {
    if (options.own_attention) used.push_back(&attention);
    if (options.own_matmul) used.push_back(&matmul);
    if (options.own_gather) used.push_back(&gather);
    ort::CustomOpDomain* raw = nullptr;
    library.check(library.api().create_custom_op_domain("com.microsoft", &raw),
                  "make a domain of operators");
    domain = {raw, library.api().release_custom_op_domain};
    for (const OwnOp* op : used) {
      library.check(library.api().add_to_custom_op_domain(raw, op), "add an operator");
    }
  }

  // Throws what one of them had to say.
  void rethrow() const {
    for (const OwnOp* op : used) {
      if (op->failure) std::rethrow_exception(op->failure);
    }
  }

  AttentionOp attention;
  MatmulOp matmul;
  GatherOp gather;
  std::vector<const OwnOp*> used;
  ort::Handle<ort::CustomOpDomain> domain{nullptr, nullptr};
};

Session::Session(std::shared_ptr<const OrtLibrary> library, const std::filesystem::path& graph,
                 const SessionOptions& options)
    : library_(std::move(library)) {
  open(options, "open '" + graph.string() + "'", [&](const auto* settings, auto** session) {
    return library_->api().create_session(library_->env(), graph.c_str(), settings, session);
  });
}

Session::Session(std::shared_ptr<const OrtLibrary> library, const GraphBytes& graph,
                 const SessionOptions& options)
    : library_(std::move(library)) {
  open(options, "open a graph in memory", [&](const auto* settings, auto** session) {
    return library_->api().create_session_from_array(library_->env(), graph.bytes.data(),
                                                     graph.bytes.size(), settings, session);
  });
}

void Session::open(const SessionOptions& options, const std::string& what, const Create& create) {
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
  // Idle threads leave the processor to others: to those of a draft or a target, to begin with.
  check(api.add_session_config_entry(raw, "session.force_spinning_stop", spinning));
  // Constants are folded at load however large they are: by default not where it makes a gigabyte,
  // and weights stored in another type would be converted anew in every forward.
  check(api.add_session_config_entry(raw, "optimization.constant_folding_max_output_size_in_bytes",
                                     "0"));
  if (options.dequantize_weights) {
    check(api.add_session_config_entry(raw, "session.disable_quant_qdq", "1"));
  }
  append_provider(raw, options);
  own_ops_ = std::make_shared<OwnOps>(*library_, options);
  if (!own_ops_->used.empty()) check(api.add_custom_op_domain(raw, own_ops_->domain.get()));

  ort::Session* session = nullptr;
  ort::Status* const status = create(raw, &session);
  const auto lacks_memory = [&] {
    api.release_status(status);
    return ModelError({"The weights of a graph do not fit into memory", "memory for them",
                       "none left: could not " + what,
                       "Close other models, or export with fewer bits (--weights int4)."});
  };
  try {
    own_ops_->rethrow();
  } catch (const Error&) {
    api.release_status(status);
    throw;
  } catch (const std::bad_alloc&) {
    throw lacks_memory();
  } catch (const std::exception&) {  // ONNX Runtime's message has it
  }
  if (status != nullptr &&
      std::string_view(api.get_error_message(status)).find("bad_alloc") != std::string_view::npos) {
    throw lacks_memory();
  }
  library_->check(status, what,
                  "A graph newer than the runtime needs: pip install -U onnxruntime.");
  // The library outlives its session, and so do operators.
  session_ = {session, [kept = library_, own_ops = own_ops_](ort::Session* s) {
                kept->api().release_session(s);
              }};
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
    check(reinterpret_cast<Append>(append)(session_options, options.device_id()));
  } else {
    check(api.append_provider(session_options, migraphx ? "MIGraphX" : "ROCM", pairs.keys.data(),
                              pairs.values.data(), count));
  }
}

ort::Handle<ort::Value> Session::tensor(const Memory& memory, void* data, ort::ElementType type,
                                        std::span<const std::int64_t> shape) const {
  std::size_t bytes = size_of(type);
  for (const std::int64_t dimension : shape) {
    bytes *= static_cast<std::size_t>(dimension);
  }
  ort::Value* value = nullptr;
  library_->check(library_->api().create_tensor_with_data(memory.info(), data, bytes, shape.data(),
                                                          shape.size(), type, &value),
                  "make a tensor");
  return {value, library_->api().release_value};
}

void Session::run(std::span<const char* const> input_names,
                  std::span<const ort::Value* const> inputs,
                  std::span<const char* const> output_names, std::span<ort::Value* const> outputs,
                  std::int64_t unread_logits) const {
  own_ops_->matmul.unread_logits = unread_logits;
  // The C API takes the array of outputs as one it may fill; it fills only places that are null.
  library_->check(library_->api().run(session_.get(), nullptr, input_names.data(), inputs.data(),
                                      inputs.size(), output_names.data(), outputs.size(),
                                      const_cast<ort::Value**>(outputs.data())),
                  "run the graph");
}

std::size_t size_of(ort::ElementType type) {
  switch (type) {
    case ort::ElementType::u8:
    case ort::ElementType::i8:
      return 1;
    case ort::ElementType::f16:
    case ort::ElementType::bf16:
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
    case ort::ElementType::u8:
      return "uint8";
    case ort::ElementType::i8:
      return "int8";
    case ort::ElementType::f16:
      return "float16";
    case ort::ElementType::bf16:
      return "bfloat16";
    case ort::ElementType::unspecified:
      break;
  }
  return "element type " + std::to_string(static_cast<int>(type));
}

}  // namespace pard
