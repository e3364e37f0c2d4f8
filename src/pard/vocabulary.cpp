#include "vocabulary.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "error.h"

namespace pard {

namespace {

// Tokens may be parts of characters, and messages are text.
std::string quoted(std::string_view bytes) {
  constexpr const char* digits = "0123456789abcdef";
  std::string text = "'";
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F) {
      text += c;
    } else {
      text += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    }
  }
  return text + "'";
}

}  // namespace

std::optional<VocabularyComparison> compare_vocabularies(const ModelInfo& target,
                                                         const ModelInfo& draft) {
  if (!target.token_bytes || !draft.token_bytes) return std::nullopt;
  const TokenBytes& targets = *target.token_bytes;
  const TokenBytes& drafts = *draft.token_bytes;
  VocabularyComparison result;
  for (Token token = 0; token < std::max(targets.size(), drafts.size()); ++token) {
    const std::string_view in_target = targets[token];
    const std::string_view in_draft = drafts[token];
    if (in_target.empty() && in_draft.empty()) continue;
    if (in_draft.empty()) {
      result.only_in_target.push_back(token);
    } else if (in_target.empty()) {
      result.only_in_draft.push_back(token);
    } else if (in_target == in_draft) {
      ++result.num_equal;
    } else {
      result.different.push_back(token);
    }
  }
  return result;
}

void check_compatible(const ModelInfo& target, const ModelInfo& draft) {
  const auto compared = compare_vocabularies(target, draft);
  if (!compared || compared->different.empty()) return;
  const Token token = compared->different.front();
  const auto count = static_cast<std::int64_t>(compared->different.size());
  throw IncompatibleModels(
      {"Draft '" + draft.name + "' and target '" + target.name + "' have different tokenizers: " +
           std::to_string(count) + " of the " + std::to_string(compared->num_equal + count) +
           " token ids that both know mean different text",
       "token " + std::to_string(token) + " to be " + quoted((*target.token_bytes)[token]) +
           ", as in the target",
       quoted((*draft.token_bytes)[token]), "Use a draft of the target's family."});
}

std::int64_t num_proposable(const ModelInfo& target, const ModelInfo& draft) {
  const std::int64_t known = std::min(target.token_count(), draft.token_count());
  const std::vector<Token>& head = draft.head_tokens;
  return head.empty() ? known : std::ranges::lower_bound(head, known) - head.begin();
}

}  // namespace pard
