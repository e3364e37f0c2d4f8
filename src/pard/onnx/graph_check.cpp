#include "graph_check.h"

#include <algorithm>
#include <set>

#include "pard/error.h"

namespace pard {

namespace {

constexpr std::int64_t any = -1;

std::string describe(const TensorSpec& spec) {
  std::string text = name_of(spec.type) + " [";
  if (!spec.shape) return text + "...]";
  for (std::size_t i = 0; i < spec.shape->size(); ++i) {
    const std::int64_t size = spec.shape->at(i);
    text += (i == 0 ? "" : ", ") + (size < 0 ? "?" : std::to_string(size));
  }
  return text + "]";
}

const TensorSpec* look_up(const std::vector<TensorSpec>& specs, const std::string& name) {
  const auto found = std::find_if(specs.begin(), specs.end(),
                                  [&](const TensorSpec& spec) { return spec.name == name; });
  return found == specs.end() ? nullptr : &*found;
}

class Checker {
 public:
  explicit Checker(const FolderContract& contract) : contract_(contract) {}

  const TensorSpec& find(const std::vector<TensorSpec>& specs, const std::string& name,
                         const char* role) const {
    const TensorSpec* found = look_up(specs, name);
    if (found == nullptr) {
      std::string names;
      for (const TensorSpec& spec : specs) {
        names += (names.empty() ? "" : ", ") + spec.name;
      }
      fail(std::string("an ") + role + " '" + name + "'", names.substr(0, 300));
    }
    return *found;
  }

  void match(const std::vector<TensorSpec>& specs, const char* role,
             const TensorSpec& wanted) const {
    const TensorSpec& spec = find(specs, wanted.name, role);
    bool same = spec.type == wanted.type;
    if (spec.shape && wanted.shape) {
      same &= std::equal(spec.shape->begin(), spec.shape->end(), wanted.shape->begin(),
                         wanted.shape->end(), [](std::int64_t is, std::int64_t should_be) {
                           return is < 0 || should_be < 0 || is == should_be;
                         });
    }
    if (!same) {
      fail(std::string(role) + " '" + wanted.name + "' as " + describe(wanted), describe(spec));
    }
  }

  DType dtype(const TensorSpec& spec, const std::optional<DType>& promised) const {
    if (promised) {
      return *promised;
    }
    if (spec.type != ort::ElementType::f32 && spec.type != ort::ElementType::f16) {
      fail("'" + spec.name + "' as float32 or float16", describe(spec));
    }
    return spec.type == ort::ElementType::f32 ? DType::f32 : DType::f16;
  }

  [[noreturn]] void fail(const std::string& expected, const std::string& actual) const {
    throw FolderError({"The graph '" + contract_.graph + "' does not keep the contract in '" +
                           contract_.file + "'",
                       expected, actual, "Export the folder again; see docs/onnx-folder.md."});
  }

 private:
  const FolderContract& contract_;
};

constexpr const char* leave_out = "Build the folder again without it: the model stays the same.";
constexpr const char* in_floats =
    "Build the folder again with --precision fp32 --execution_provider cpu, which keeps every "
    "weight of the checkpoint.";

[[noreturn]] void refuse(const FolderContract& contract, const std::string& option,
                         const std::string& expected, const std::string& actual,
                         const char* remedy = leave_out) {
  throw FolderError({"The graph '" + contract.graph + "' of '" + contract.file +
                         "' was built with " + option + " and cannot run here",
                     expected, actual, remedy});
}

// What the options of onnxruntime-genai's builder leave in a graph, where it cannot run here.
void check_builder_options(const FolderContract& contract) {
  const OnnxFileSummary& graph = contract.file_summary;
  for (const TensorSpec& input : graph.inputs) {
    if (input.name == "inputs_embeds") {
      refuse(contract, "exclude_embeds=true", "a graph that takes token ids",
             "one that takes embeddings");
    }
    if (input.name == "block_table") {
      refuse(contract, "use_paged_attention=true", "keys and values in one buffer for a sequence",
             "pages of them");
    }
    if (input.name.ends_with(".conv") || input.name.ends_with(".recurrent")) {
      throw FolderError({"'" + contract.file + "' is of a model with recurrent layers",
                         "keys and values alone, which can be rewound",
                         "an input '" + input.name + "'", "Run it with onnxruntime-genai."});
    }
  }
  const TensorSpec* logits = look_up(graph.outputs, contract.names.logits);
  if (logits == nullptr && look_up(graph.outputs, "hidden_states") != nullptr) {
    refuse(contract, "exclude_lm_head=true", "a graph that returns logits",
           "one that returns hidden states");
  }
  if (logits != nullptr && logits->shape && logits->shape->size() == 3 &&
      logits->shape->at(1) == 1) {
    refuse(contract, "prune_lm_head=true", "logits for every row, which check the proposals",
           "logits for the last row only");
  }
  const TensorSpec* keys = look_up(graph.inputs, layer_name(contract.names.past_key, 0));
  if (keys != nullptr && keys->type == ort::ElementType::bf16) {
    refuse(contract, "--precision bf16 or use_cuda_bf16=true",
           "keys and values in float32 or float16", describe(*keys), in_floats);
  }
  if (keys != nullptr && keys->type != ort::ElementType::f32 &&
      keys->type != ort::ElementType::f16) {
    refuse(contract, "kv_cache_quant_scheme", "keys and values in float32 or float16",
           describe(*keys),
           "Run it with onnxruntime-genai: other keys and values give other text.");
  }
  if (!graph.op_types.contains("GroupQueryAttention")) {
    refuse(contract, "a precision that has no GroupQueryAttention on its execution provider",
           "an attention that reads and writes one buffer", "one that copies its past", in_floats);
  }
}

// What the weights are quantized to: the fewest bits of any. The builder's use_qdq leaves a
// DequantizeLinear of 4 bits before every MatMul.
std::string weights_of(const OnnxFileSummary& graph, DType kv_dtype) {
  if (!graph.weight_bits.empty()) return *graph.weight_bits.begin() > 4 ? "int8" : "int4";
  if (graph.op_types.contains("MatMulInteger")) return "int8";
  if (graph.op_types.contains("DequantizeLinear")) return "int4";
  return kv_dtype == DType::f32 ? "fp32" : "fp16";
}

}  // namespace

std::string layer_name(const std::string& pattern, std::int64_t layer) {
  std::string name = pattern;
  if (const std::size_t at = name.find("%d"); at != name.npos) {
    name.replace(at, 2, std::to_string(layer));
  }
  return name;
}

ort::ElementType element_type(DType dtype) {
  return dtype == DType::f32 ? ort::ElementType::f32 : ort::ElementType::f16;
}

void check_graph(FolderContract& contract, const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / contract.graph;
  std::error_code error;
  if (contract.from_builder && !std::filesystem::exists(file, error)) {
    throw FolderError(
        {"The graph of '" + contract.file + "' is missing (config_only=true writes none)",
         "a graph in the file '" + file.string() + "'", "no such file",
         "Copy it into the folder, or build the folder again without config_only."});
  }
  contract.file_summary = check_onnx_file(file);
  const Checker checker(contract);
  const GraphNames& names = contract.names;
  const auto& inputs = contract.file_summary.inputs;
  const auto& outputs = contract.file_summary.outputs;
  if (contract.from_builder) check_builder_options(contract);
  const std::string first_key = layer_name(names.past_key, 0);
  contract.kv_dtype = checker.dtype(checker.find(inputs, first_key, "input"), contract.kv_dtype);
  contract.logits_dtype =
      checker.dtype(checker.find(outputs, names.logits, "output"), contract.logits_dtype);
  const ort::ElementType kv = element_type(*contract.kv_dtype);
  if (contract.weights.empty()) {
    contract.weights = weights_of(contract.file_summary, *contract.kv_dtype);
  }
  std::vector<TensorSpec> wanted;
  using enum ort::ElementType;
  const auto want = [&](const std::string& name, ort::ElementType type,
                        std::vector<std::int64_t> shape) {
    if (!name.empty()) {
      wanted.push_back({name, type, std::move(shape)});
    }
  };
  want(names.input_ids, i64, {any, any});
  want(names.position_ids, i64, {any, any});
  want(names.attention_bias, kv, {any, 1, any, any});
  want(names.attention_mask, i64, {any, any});
  want(names.seqlens_k, i32, {any});
  want(names.total_sequence_length, i32, {});
  want(names.num_logits, i64, {1});
  const std::int64_t heads = contract.num_kv_heads;
  const std::vector<std::int64_t> kv_shape = contract.form == GraphForm::gqa
                                                 ? std::vector{any, heads, any, contract.head_dim}
                                                 : std::vector{any, any, heads, contract.head_dim};
  for (std::int64_t layer = 0; layer < contract.num_layers; ++layer) {
    want(layer_name(names.past_key, layer), kv, kv_shape);
    want(layer_name(names.past_value, layer), kv, kv_shape);
  }
  std::set<std::string> known;
  for (const TensorSpec& spec : wanted) {
    checker.match(inputs, "input", spec);
    known.insert(spec.name);
  }
  for (const TensorSpec& spec : inputs) {
    if (!known.contains(spec.name)) {
      checker.fail("no other inputs than token ids, positions and keys and values",
                   "an input '" + spec.name + "', which cannot be rewound or is not known");
    }
  }

  checker.match(outputs, "output",
                {names.logits, element_type(*contract.logits_dtype),
                 std::vector{any, any, contract.row_size()}});
  for (std::int64_t layer = 0; layer < contract.num_layers; ++layer) {
    checker.match(outputs, "output", {layer_name(names.new_key, layer), kv, kv_shape});
    checker.match(outputs, "output", {layer_name(names.new_value, layer), kv, kv_shape});
  }
}

void check_provider(const FolderContract& contract, const std::string& provider) {
  const OnnxFileSummary& graph = contract.file_summary;
  const bool cpu = provider == "cpu";
  if (cpu && graph.attention_normalizes) {
    refuse(contract, "fuse_qk_norm_gqa=true", "on the CPU, queries and keys that come normalized",
           "an attention that normalizes them, as it does on CUDA only");
  }
  if (cpu && graph.weights_are_prepacked) {
    refuse(contract, "matmulnbits_weights_prepacked or qmoe_weights_prepacked",
           "on the CPU, weights in their own order", "weights in the order of CUDA's kernels");
  }
  if (!cpu && graph.dropping_window > 0) {
    refuse(contract, "windowed_kv_cache=true", "keys and values that stay, to be rewound",
           "a cache of " + std::to_string(graph.dropping_window) +
               " of them, which only the CPU can make longer",
           "Build the folder again with windowed_kv_cache=false: the model keeps its window.");
  }
}

}  // namespace pard
