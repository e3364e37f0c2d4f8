#pragma once

#include <string>
#include <vector>

#include "folder.h"
#include "pard/logits.h"
#include "session.h"

namespace pard {

// What the graph adds to its contract, once it has been found to keep it.
struct GraphTypes {
  DType kv = DType::f32;
  DType logits = DType::f32;
};

// "past.%d.key", 3 -> "past.3.key"
std::string layer_name(const std::string& pattern, std::int64_t layer);

ort::ElementType element_type(DType dtype);

// Compares the graph's inputs and outputs with the contract: names, types, ranks and fixed
// dimensions. Throws FolderError for the first that differs, and for inputs the contract does not
// have: a graph with more state than keys and values cannot be rewound.
GraphTypes check_graph(const FolderContract& contract, const Session& session);

}  // namespace pard
