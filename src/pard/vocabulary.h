#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "model.h"
#include "types.h"

namespace pard {

// How the token ids of a draft relate to those of its target. Special tokens and unused ids spell
// nothing and are not compared: verification is exact whatever a draft takes them for.
struct VocabularyComparison {
  std::int64_t num_equal = 0;    // both spell these the same way
  std::vector<Token> different;  // both spell these, but differently: the models do not fit
  std::vector<Token> only_in_target;
  std::vector<Token> only_in_draft;
};

// Absent if one of the two has no table of token bytes: then nothing can be compared.
std::optional<VocabularyComparison> compare_vocabularies(const ModelInfo& target,
                                                         const ModelInfo& draft);

// Throws IncompatibleModels if both models spell an id, but differently. The number of ids may
// differ: see num_proposable.
void check_compatible(const ModelInfo& target, const ModelInfo& draft);

// So many of the draft's logits, from the first on, are of tokens of both models. The others are
// never proposed: the target cannot emit them, or the draft does not know them.
std::int64_t num_proposable(const ModelInfo& target, const ModelInfo& draft);

}  // namespace pard
