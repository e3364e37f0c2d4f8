#pragma once

#include <filesystem>
#include <string>

#include "folder.h"
#include "pard/logits.h"
#include "session.h"

namespace pard {

// Of the graph's tensors: both of a contract that was checked.
struct GraphTypes {
  DType kv = DType::f32;
  DType logits = DType::f32;
};

// "past.%d.key", 3 -> "past.3.key"
std::string layer_name(const std::string& pattern, std::int64_t layer);

ort::ElementType element_type(DType dtype);

// Compares what the graph's file in `folder` declares with the contract: names, types, ranks and
// fixed dimensions, and fills in what the contract leaves to the graph. Throws FolderError for the
// first that differs, and for inputs the contract does not have: a graph with more state than keys
// and values cannot be rewound. Where an option of onnxruntime-genai's model builder made the graph
// so, the error names it.
void check_graph(FolderContract& contract, const std::filesystem::path& folder);

// Throws FolderError where the graph runs on other providers, but not on this one.
void check_provider(const FolderContract& contract, const std::string& provider);

}  // namespace pard
