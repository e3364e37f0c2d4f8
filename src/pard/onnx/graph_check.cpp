#include "graph_check.h"

#include <algorithm>
#include <set>

#include "pard/error.h"

namespace pard {

namespace {

constexpr std::int64_t any = -1;

std::string describe(const TensorSpec& spec) {
  std::string text = name_of(spec.type) + " [";
  for (std::size_t i = 0; i < spec.shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + (spec.shape[i] < 0 ? "?" : std::to_string(spec.shape[i]));
  }
  return text + "]";
}

class Checker {
 public:
  explicit Checker(const FolderContract& contract) : contract_(contract) {}

  const TensorSpec& find(const std::vector<TensorSpec>& specs, const std::string& name,
                         const char* role) const {
    const auto found = std::find_if(specs.begin(), specs.end(),
                                    [&](const TensorSpec& spec) { return spec.name == name; });
    if (found == specs.end()) {
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
    bool same = spec.type == wanted.type && spec.shape.size() == wanted.shape.size();
    for (std::size_t i = 0; same && i < spec.shape.size(); ++i) {
      same = spec.shape[i] < 0 || wanted.shape[i] < 0 || spec.shape[i] == wanted.shape[i];
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

GraphTypes check_graph(const FolderContract& contract, const Session& session) {
  const Checker checker(contract);
  const GraphNames& names = contract.names;
  const auto& inputs = session.inputs();
  const auto& outputs = session.outputs();

  GraphTypes types;
  const std::string first_key = layer_name(names.past_key, 0);
  types.kv = checker.dtype(checker.find(inputs, first_key, "input"), contract.kv_dtype);
  types.logits =
      checker.dtype(checker.find(outputs, names.logits, "output"), contract.logits_dtype);
  const ort::ElementType kv = element_type(types.kv);

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
                {names.logits, element_type(types.logits), {any, any, contract.vocab_size}});
  for (std::int64_t layer = 0; layer < contract.num_layers; ++layer) {
    checker.match(outputs, "output", {layer_name(names.new_key, layer), kv, kv_shape});
    checker.match(outputs, "output", {layer_name(names.new_value, layer), kv, kv_shape});
  }
  return types;
}

}  // namespace pard
