#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "session.h"

namespace pard {

// What can be told about a .onnx file without loading its weights.
struct OnnxFileSummary {
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::set<std::string> op_types;  // of the graph's own nodes; subgraphs are not entered

  // Whether every GroupQueryAttention is what attention_op.h computes: causal, over float32 keys
  // and values, without masks, caches that drop rows or quantized ones; and none lies in a
  // subgraph.
  bool attention_is_plain = true;

  // Whether every MatMulNBits is what matmul_op.h computes: float32 rows that may be rounded to 8
  // bits, constant weights of 4 or 8 bits in order; and none lies in a subgraph.
  bool products_are_plain = true;
  // Whether every GatherBlockQuantized is what gather_op.h computes.
  bool gathers_are_plain = true;
  bool products_are_ours = false;  // one of both is what ONNX Runtime's operator does not take
  bool has_gathers = false;        // any GatherBlockQuantized
  bool gathers_name_bits = false;  // with an attribute that old versions do not know

  // Whether a GroupQueryAttention normalizes queries and keys itself.
  bool attention_normalizes = false;

  // Whether a GroupQueryAttention has a sliding window.
  bool attention_has_windows = false;

  // The widest window of those that may drop keys and values in front of it; 0: none does.
  std::int64_t dropping_window = 0;

  std::set<std::int64_t> weight_bits;  // of MatMulNBits and QMoE
  bool weights_are_prepacked = false;  // for a GPU's kernels: other kernels read them as garbage

  // Files with weights that lie beside the graph, and the bytes each must have at least.
  std::map<std::string, std::uint64_t> external_data;
};

// Walks the protobuf of a model without touching the weights in it. Throws FolderError, naming
// `file`, where it is truncated or something else altogether.
OnnxFileSummary summarize_onnx(std::string_view bytes, const std::string& file);

// The same for a file on disk; the files its weights lie in must be there and long enough.
OnnxFileSummary check_onnx_file(const std::filesystem::path& path);

}  // namespace pard
