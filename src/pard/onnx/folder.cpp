#include "folder.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <span>
#include <system_error>
#include <utility>

#include "graph_check.h"
#include "json.h"
#include "pard/error.h"

namespace pard {

namespace {

constexpr std::int64_t max_token = std::numeric_limits<Token>::max();
constexpr const char* export_again = "Export the folder again with a matching pard-rt.";
constexpr const char* build_again = "Build the folder again with onnxruntime-genai's builder.";

json::Value parse_json(std::string_view text, const std::string& file) {
  try {
    return json::parse(text);
  } catch (const json::ParseError& error) {
    throw FolderError({"'" + file + "' cannot be read", "JSON",
                       error.reason + " in line " + std::to_string(error.line),
                       "Copy or export the folder again."});
  }
}

// Typed access to one JSON object; every failure names file, key, expected and actual.
class Fields {
 public:
  Fields(const json::Value& object, std::string path, const std::string& file, const char* remedy)
      : object_(object), path_(std::move(path)), file_(file), remedy_(remedy) {
    if (object.as<json::Value::Object>() == nullptr) {
      fail(path_.empty() ? "the document" : path_, "an object", object.kind());
    }
  }

  Fields object(const char* key) const {
    return {required(key, "an object"), path_of(key), file_, remedy_};
  }

  std::string string(const char* key) const {
    return as<std::string>(required(key, "a string"), path_of(key), "a string");
  }

  std::int64_t integer(const char* key, std::int64_t least, std::int64_t most) const {
    return integer(required(key, range(least, most)), path_of(key), least, most);
  }

  // A token id; null stands for none.
  std::optional<Token> token(const char* key, bool may_miss = false) const {
    const json::Value* value = object_.find(key);
    if (value == nullptr && !may_miss) {
      fail(path_of(key), "a token id or null", "nothing");
    }
    if (value == nullptr || value->is_null()) {
      return std::nullopt;
    }
    return static_cast<Token>(integer(*value, path_of(key), 0, max_token));
  }

  // A list of token ids; with `loose`, one alone or null will do.
  std::vector<Token> tokens(const char* key, bool loose = false) const {
    if (loose && (!has(key) || object_.find(key)->as<json::Value::Array>() == nullptr)) {
      const std::optional<Token> one = token(key, true);
      return one ? std::vector<Token>{*one} : std::vector<Token>{};
    }
    std::vector<Token> result;
    constexpr const char* expected = "a list of token ids";
    for (const auto& id : as<json::Value::Array>(required(key, expected), path_of(key), expected)) {
      result.push_back(static_cast<Token>(integer(id, path_of(key), 0, max_token)));
    }
    return result;
  }

  bool boolean(const char* key, bool otherwise) const {
    return has(key) ? as<bool>(required(key, "true or false"), path_of(key), "true or false")
                    : otherwise;
  }

  bool has(const char* key) const { return object_.find(key) != nullptr; }

  std::string described() const { return "'" + file_ + "'"; }

  [[noreturn]] void fail(const std::string& key, const std::string& expected,
                         const std::string& actual) const {
    throw FolderError({"'" + file_ + "' is no contract: " + key, expected, actual, remedy_});
  }

  std::string path_of(const char* key) const { return path_.empty() ? key : path_ + "." + key; }

 private:
  static std::string range(std::int64_t least, std::int64_t most) {
    return "an integer from " + std::to_string(least) + " to " + std::to_string(most);
  }

  const json::Value& required(const char* key, const std::string& expected) const {
    const json::Value* value = object_.find(key);
    if (value == nullptr) {
      fail(path_of(key), expected, "nothing");
    }
    return *value;
  }

  template <class T>
  const T& as(const json::Value& value, const std::string& path, const char* expected) const {
    const T* typed = value.as<T>();
    if (typed == nullptr) {
      fail(path, expected, value.kind());
    }
    return *typed;
  }

  std::int64_t integer(const json::Value& value, const std::string& path, std::int64_t least,
                       std::int64_t most) const {
    const std::int64_t* number = value.as<std::int64_t>();
    if (number == nullptr || *number < least || *number > most) {
      fail(path, range(least, most), number == nullptr ? value.kind() : std::to_string(*number));
    }
    return *number;
  }

  const json::Value& object_;
  std::string path_;
  const std::string& file_;
  const char* remedy_;
};

// A file of the folder itself: a name that leads elsewhere is not ours to follow.
std::string file_name(const Fields& fields, const char* key) {
  const std::string name = fields.string(key);
  if (name.empty() || name.find('/') != name.npos || name.find('\0') != name.npos) {
    fields.fail(fields.path_of(key), "the name of a file in the folder", "'" + name + "'");
  }
  return name;
}

std::string one_of(const Fields& fields, const char* key,
                   std::initializer_list<const char*> allowed) {
  std::string value = fields.string(key);
  std::string choices;
  for (const char* choice : allowed) {
    if (value == choice) {
      return value;
    }
    choices += (choices.empty() ? "" : ", ") + std::string(choice);
  }
  fields.fail(fields.path_of(key), "one of " + choices, "'" + value + "'");
}

DType dtype(const Fields& fields, const char* key) {
  return one_of(fields, key, {"float32", "float16"}) == "float32" ? DType::f32 : DType::f16;
}

GraphNames names_of(GraphForm form) {
  GraphNames names{.input_ids = "input_ids",
                   .position_ids = {},
                   .attention_bias = {},
                   .attention_mask = {},
                   .seqlens_k = {},
                   .total_sequence_length = {},
                   .num_logits = "num_logits",
                   .past_key = "past.%d.key",
                   .past_value = "past.%d.value",
                   .logits = "logits",
                   .new_key = "new.%d.key",
                   .new_value = "new.%d.value"};
  if (form == GraphForm::portable) {
    names.position_ids = "position_ids";
    names.attention_bias = "attention_bias";
  } else {
    names.seqlens_k = "seqlens_k";
    names.total_sequence_length = "total_sequence_length";
    names.new_key = "present.%d.key";
    names.new_value = "present.%d.value";
  }
  return names;
}

void read_shape(FolderContract& contract, const Fields& fields, const char* layers,
                const char* heads, const char* head_dim) {
  contract.num_layers = fields.integer(layers, 1, 4096);
  contract.num_kv_heads = fields.integer(heads, 1, 4096);
  contract.head_dim = fields.integer(head_dim, 1, 16384);
}

}  // namespace

std::string read_file(const std::filesystem::path& path, std::uintmax_t max_mib) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  std::ifstream stream(path, std::ios::binary);
  if (error || !stream || size > max_mib << 20) {
    throw FolderError({"'" + path.string() + "' cannot be read",
                       "a file of at most " + std::to_string(max_mib) + " MiB",
                       error ? error.message() : "one that is larger or locked",
                       "Copy or export the folder again."});
  }
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void check_tokens(const Fields& fields, const char* key, std::span<const Token> ids,
                  std::int64_t vocab_size) {
  for (const Token token : ids) {
    if (token < vocab_size) continue;
    fields.fail(key, "ids below vocab_size = " + std::to_string(vocab_size), std::to_string(token));
  }
}

std::vector<Token> head_tokens(const Fields& fields, std::int64_t vocab_size) {
  std::vector<Token> ids = fields.tokens("head_tokens");
  check_tokens(fields, "head_tokens", ids, vocab_size);
  const auto falls = std::ranges::adjacent_find(ids, std::greater_equal<>());
  if (ids.empty() || falls != ids.end()) {
    fields.fail(
        "head_tokens", "token ids, each above the one before",
        ids.empty() ? "none" : std::to_string(falls[1]) + " after " + std::to_string(falls[0]));
  }
  return ids;
}

FolderContract parse_pard_contract(std::string_view text, const std::string& file) {
  const json::Value document = parse_json(text, file);
  const Fields fields(document, "", file, export_again);
  fields.integer("format_version", 1, 1);
  FolderContract contract;
  contract.file = file;
  contract.name = fields.string("name");
  contract.graph = file_name(fields, "model");
  contract.form =
      one_of(fields, "form", {"portable", "gqa"}) == "gqa" ? GraphForm::gqa : GraphForm::portable;
  contract.names = names_of(contract.form);
  read_shape(contract, fields, "num_layers", "num_kv_heads", "head_dim");
  contract.kv_dtype = dtype(fields, "kv_dtype");
  contract.logits_dtype = dtype(fields, "logits_dtype");
  contract.vocab_size = fields.integer("vocab_size", 1, max_token);
  contract.num_tokens = fields.integer("num_tokens", 1, contract.vocab_size);
  contract.max_length = fields.integer("max_length", 2, max_token - 1);
  contract.bos_token_id = fields.token("bos_token_id");
  contract.eos_token_ids = fields.tokens("eos_token_ids");
  contract.mask_token_id = fields.token("mask_token_id");
  contract.weights = one_of(fields, "weights", {"fp32", "fp16", "int8", "int4", "gguf"});
  contract.requires_own_attention = fields.boolean("requires_own_attention", false);
  if (contract.mask_token_id) {
    check_tokens(fields, "mask_token_id", {&*contract.mask_token_id, 1}, contract.vocab_size);
  }
  check_tokens(fields, "eos_token_ids", contract.eos_token_ids, contract.vocab_size);
  if (fields.has("head_tokens")) contract.head_tokens = head_tokens(fields, contract.vocab_size);
  return contract;
}

// Parts of genai_config.json that speak of more than one graph, or of one that moves its own cache.
void refuse_other_layouts(const Fields& model) {
  const char* another = "Run it with onnxruntime-genai.";
  for (const char* part : {"encoder", "vision", "speech", "embedding"}) {
    if (model.has(part)) {
      throw FolderError({model.described() + " describes a model of several graphs",
                         "a language model whose only graph is model.decoder",
                         "model." + std::string(part), another});
    }
  }
  if (!model.has("decoder")) {
    model.fail("model.decoder", "a decoder-only language model", "nothing");
  }
  const Fields decoder = model.object("decoder");
  if (decoder.has("pipeline")) {
    throw FolderError({model.described() + " cuts the decoder into several graphs",
                       "one graph, in model.decoder.filename", "model.decoder.pipeline",
                       "Build the model with onnxruntime-genai's builder for cpu or cuda, which "
                       "writes one graph."});
  }
  if (!decoder.has("sliding_window")) return;
  const Fields window = decoder.object("sliding_window");
  for (const char* key : {"slide_key_value_cache", "slide_inputs"}) {
    if (window.boolean(key, true)) {  // as onnxruntime-genai reads it
      throw FolderError({model.described() + " lets the runtime move keys and values along",
                         "keys and values that stay where they are, so that they can be rewound",
                         window.path_of(key) + " = true", another});
    }
  }
}

FolderContract parse_builder_contract(std::string_view text, const std::string& file) {
  const json::Value document = parse_json(text, file);
  const Fields model = Fields(document, "", file, build_again).object("model");
  refuse_other_layouts(model);
  const Fields decoder = model.object("decoder");
  FolderContract contract;
  contract.file = file;
  contract.name = model.has("type") ? model.string("type") : "decoder";
  contract.graph = file_name(decoder, "filename");
  contract.form = GraphForm::gqa;
  contract.from_builder = true;
  read_shape(contract, decoder, "num_hidden_layers", "num_key_value_heads", "head_size");
  contract.vocab_size = model.integer("vocab_size", 1, max_token);
  contract.max_length = model.integer("context_length", 2, max_token - 1);
  contract.bos_token_id = model.token("bos_token_id", true);
  contract.eos_token_ids = model.tokens("eos_token_id", true);
  check_tokens(model, "eos_token_id", contract.eos_token_ids, contract.vocab_size);

  const auto name = [](const Fields& fields, const char* key, const char* usual) {
    return fields.has(key) ? fields.string(key) : std::string(usual);
  };
  const Fields inputs = decoder.object("inputs");
  const Fields outputs = decoder.object("outputs");
  GraphNames& names = contract.names;
  names.input_ids = name(inputs, "input_ids", "input_ids");
  names.attention_mask = name(inputs, "attention_mask", "attention_mask");
  names.position_ids = name(inputs, "position_ids", "");
  names.past_key = name(inputs, "past_key_names", "past_key_values.%d.key");
  names.past_value = name(inputs, "past_value_names", "past_key_values.%d.value");
  names.logits = name(outputs, "logits", "logits");
  names.new_key = name(outputs, "present_key_names", "present.%d.key");
  names.new_value = name(outputs, "present_value_names", "present.%d.value");
  return contract;
}

namespace {

FolderContract read_contract(const std::filesystem::path& folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw FolderError({"A model folder is missing", "a directory '" + folder.string() + "'",
                       "none there", "Pass the folder that pard-rt export wrote."});
  }
  const std::filesystem::path own = folder / "pard_rt.json";
  const std::filesystem::path builder = folder / "genai_config.json";
  if (std::filesystem::exists(own, error)) {
    return parse_pard_contract(read_file(own, 16), own.string());
  }
  if (std::filesystem::exists(builder, error)) {
    return parse_builder_contract(read_file(builder, 16), builder.string());
  }
  throw FolderError({"'" + folder.string() + "' is no ONNX folder",
                     "a file pard_rt.json or genai_config.json", "neither",
                     "Write one with: pard-rt export."});
}

}  // namespace

FolderContract read_folder(const std::filesystem::path& folder) {
  FolderContract contract = read_contract(folder);
  check_graph(contract, folder);
  return contract;
}

std::shared_ptr<const TokenBytes> read_token_bytes(const std::filesystem::path& folder,
                                                   const FolderContract& contract) {
  const std::filesystem::path file = folder / "token_bytes.bin";
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return nullptr;
  return std::make_shared<TokenBytes>(
      read_file(file, 256), contract.num_tokens.value_or(contract.vocab_size), file.string());
}

}  // namespace pard
