#pragma once

#include <memory>
#include <utility>

#include "fake_model.h"
#include "pard/composed_executor.h"
#include "pard/decoder.h"
#include "pard/draft.h"

namespace pard::test {

enum class Method { plain, parallel, autoregressive };

// A fake target, a fake draft and a Decoder over them, with the parts at hand.
struct FakePair {
  static constexpr int vocab_size = 24;
  static constexpr std::int64_t prefill_chunk = 16;

  FakePair(Method method, Manner manner, DecoderOptions options = {},
           std::int64_t max_length = 1 << 20, std::int64_t draft_max_length = 1 << 20)
      : target(
            std::make_shared<FakeModel>(language, FakeModel::Options{.max_length = max_length})) {
    std::shared_ptr<Drafter> drafter;
    if (method != Method::plain) {
      const Token mask = vocab_size;  // the first row of the draft's padding
      draft =
          std::make_shared<FakeModel>(language, FakeModel::Options{.manner = manner,
                                                                   .mask_token_id = mask,
                                                                   .padding = 3,
                                                                   .max_length = draft_max_length});
      if (method == Method::parallel) {
        drafter = std::make_shared<ParallelDrafter>(draft, mask, prefill_chunk);
      } else {
        drafter = std::make_shared<AutoregressiveDrafter>(draft, prefill_chunk);
      }
    }
    auto composed = std::make_unique<ComposedExecutor>(target, std::move(drafter), prefill_chunk);
    executor = composed.get();
    decoder = std::make_unique<Decoder>(std::move(composed), options);
  }

  // Leaves the rows of both models on a device.
  void use_device() {
    target->device = device;
    if (draft) draft->device = device;
  }

  // Whether every cache holds, for `sequence`, what a fresh prefill would.
  bool caches_are_fresh(const Sequence& sequence) const {
    const auto fresh = [&](const FakeModel& model, const CachedModel& cached) {
      return model.cache_equals_fresh_prefill(sequence.id(), sequence.tokens(),
                                              cached.cached_length(sequence.id()));
    };
    return fresh(*target, executor->target()) &&
           (!draft || fresh(*draft, executor->drafter()->model()));
  }

  FakeLanguage language{vocab_size};
  std::shared_ptr<FakeModel> target;
  std::shared_ptr<FakeModel> draft;
  std::shared_ptr<test::FakeDevice> device = std::make_shared<test::FakeDevice>();
  ComposedExecutor* executor = nullptr;
  std::unique_ptr<Decoder> decoder;
};

inline std::vector<Token> prompt_of(int length, std::uint64_t seed = 0) {
  std::vector<Token> prompt;
  for (int i = 0; i < length; ++i) {
    prompt.push_back(static_cast<Token>(mix(seed * 1000 + static_cast<std::uint64_t>(i) + 1) %
                                        FakePair::vocab_size));
  }
  return prompt;
}

inline std::vector<Token> generated(const Sequence& sequence) {
  return {sequence.generated().begin(), sequence.generated().end()};
}

}  // namespace pard::test
