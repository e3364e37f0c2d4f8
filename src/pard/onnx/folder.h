#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "onnx_file.h"
#include "pard/logits.h"
#include "pard/token_bytes.h"
#include "pard/types.h"

namespace pard {

// How a graph takes its past: docs/onnx-folder.md draws both.
enum class GraphForm : std::uint8_t {
  portable,  // standard operators: the past is read-only, new rows come out
  gqa,       // GroupQueryAttention: one buffer is past and present
};

// The names of a graph's inputs and outputs. `%d` in a name counts layers; an empty name is an
// input this form does not have.
struct GraphNames {
  std::string input_ids;
  std::string position_ids;
  std::string attention_bias;         // added to the attention scores
  std::string attention_mask;         // ones for every row that counts, as the builder has it
  std::string seqlens_k;              // past + new rows - 1
  std::string total_sequence_length;  // past + new rows
  std::string num_logits;             // absent: logits come for every row
  std::string past_key;
  std::string past_value;
  std::string logits;
  std::string new_key;
  std::string new_value;
};

// What one folder says about its model: the contract its graph must keep.
struct FolderContract {
  std::string file;  // where this was read
  std::string name;
  std::string graph;  // file name of the graph
  GraphForm form = GraphForm::portable;
  GraphNames names;
  bool from_builder = false;  // a folder of onnxruntime-genai's model builder

  std::int64_t num_layers = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_length = 0;
  std::optional<DType> kv_dtype;      // absent: the graph's own, which check_graph fills in
  std::optional<DType> logits_dtype;  // the same
  std::optional<std::int64_t> num_tokens;
  std::optional<Token> bos_token_id;
  std::vector<Token> eos_token_ids;
  std::optional<Token> mask_token_id;
  std::vector<Token> head_tokens;  // of every logit, rising; empty: of all tokens
  std::string weights;             // fp32, fp16, int8, int4; empty: unknown

  // ONNX Runtime's own GroupQueryAttention refuses heads of this size; attention_op.h takes them.
  bool requires_own_attention = false;

  OnnxFileSummary file_summary;  // of the graph

  // Width of a logits row.
  std::int64_t row_size() const {
    return head_tokens.empty() ? vocab_size : static_cast<std::int64_t>(head_tokens.size());
  }
};

// The contents of a folder's file. Throws FolderError where it is missing or larger.
std::string read_file(const std::filesystem::path& path, std::uintmax_t max_mib);

// Read pard_rt.json, genai_config.json. Throw FolderError, naming `file`, for what is no such
// thing.
FolderContract parse_pard_contract(std::string_view text, const std::string& file);
FolderContract parse_builder_contract(std::string_view text, const std::string& file);

// Reads whichever of the two a folder has, pard_rt.json where it has both, and compares the graph
// with it: graph_check.h. Throws FolderError.
FolderContract read_folder(const std::filesystem::path& folder);

// Reads a folder's token_bytes.bin; null if it has none, like folders of onnxruntime-genai's
// builder. Throws FolderError as TokenBytes does.
std::shared_ptr<const TokenBytes> read_token_bytes(const std::filesystem::path& folder,
                                                   const FolderContract& contract);

}  // namespace pard
