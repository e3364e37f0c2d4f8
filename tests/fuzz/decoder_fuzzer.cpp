#include "decoder_fuzzer.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../cpp/fake_pair.h"
#include "pard/error.h"

namespace pard::test {

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "the decoder broke its promise: %s\n", what);
  std::abort();
}

class Script {
 public:
  explicit Script(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  bool done() const { return bytes_.empty(); }
  int below(int bound) {
    if (bytes_.empty()) return 0;
    const int value = bytes_.front() % bound;
    bytes_ = bytes_.subspan(1);
    return value;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

class Fuzzer {
 public:
  explicit Fuzzer(std::span<const std::uint8_t> bytes)
      : script_(bytes),
        pair_(static_cast<Method>(script_.below(3)), static_cast<Manner>(script_.below(4)),
              {.max_batch_size = 1 + static_cast<std::size_t>(script_.below(5))}, 96,
              script_.below(3) == 0 ? 40 : 200) {}

  void run() {
    while (!script_.done()) {
      happen();
      step();
    }
    heal();
    while (step()) {
    }
    for (const Entry& entry : entries_) check_text(entry);
    require(pair_.target->num_caches() == 0, "a finished sequence is released");
    require(!pair_.draft || pair_.draft->num_caches() == 0, "by the draft too");
  }

 private:
  struct Entry {
    std::shared_ptr<Sequence> sequence;
    std::vector<Token> prompt;
  };

  void happen() {
    FakeModel& model = pair_.draft && script_.below(2) == 0 ? *pair_.draft : *pair_.target;
    switch (script_.below(9)) {
      case 0:
      case 1:
      case 2:
        return join();
      case 3:
        if (!entries_.empty()) pick().sequence->cancel();
        return;
      case 4:
        if (pair_.draft) pair_.decoder->set_num_speculative_tokens(script_.below(17));
        return;
      case 5:
        model.forwards_until_failure = script_.below(3);
        return;
      case 6:
        model.poisoned_position = script_.below(96);
        return;
      case 7:
        return heal();
      default:
        return;  // just a round
    }
  }

  void join() {
    const int prompt_length = 1 + script_.below(100);
    const std::vector<Token> prompt =
        prompt_of(prompt_length, static_cast<std::uint64_t>(script_.below(8)));
    GenerationParams params;
    params.max_new_tokens = 1 + script_.below(60);
    params.sampling.temperature = static_cast<float>(script_.below(3)) * 0.6F;
    params.sampling.top_k = script_.below(6);
    params.sampling.top_p = 1.0F - static_cast<float>(script_.below(4)) * 0.2F;
    params.sampling.seed = static_cast<std::uint64_t>(script_.below(256));
    if (script_.below(4) == 0) params.eos_token_ids = {static_cast<Token>(script_.below(24))};
    if (script_.below(4) == 0) params.stop_token_ids = {static_cast<Token>(script_.below(24))};
    const int stop_after = script_.below(80);
    const int throw_at = script_.below(40);
    const auto observer = [stop_after, throw_at, calls = 0](const TokenEvent&) mutable {
      ++calls;
      if (calls == throw_at) throw std::runtime_error("observer");
      return calls != stop_after;
    };
    try {
      entries_.push_back({pair_.decoder->add(prompt, params, observer), prompt});
    } catch (const InvalidArgument&) {
      require(prompt_length >= 96, "only a prompt over the limit is refused");
    }
  }

  bool step() {
    bool more = true;
    try {
      more = pair_.decoder->step();
    } catch (const ModelError&) {
    } catch (const std::runtime_error& error) {
      require(std::string_view(error.what()) == "observer", "only models and observers throw");
    }
    for (const Entry& entry : entries_) {
      if (entry.sequence->finished()) continue;
      pair_.executor->check_integrity(*entry.sequence);
      require(pair_.caches_are_fresh(*entry.sequence), "caches equal a fresh prefill");
    }
    return more;
  }

  void heal() {
    for (FakeModel* model : {pair_.target.get(), pair_.draft.get()}) {
      if (model == nullptr) continue;
      model->forwards_until_failure.reset();
      model->poisoned_position.reset();
    }
  }

  Entry& pick() {
    return entries_[static_cast<std::size_t>(script_.below(static_cast<int>(entries_.size())))];
  }

  void check_text(const Entry& entry) const {
    const Sequence& sequence = *entry.sequence;
    require(sequence.finished(), "every sequence finishes");
    const std::vector<Token> ids = generated(sequence);
    require(ids == decode_plainly(pair_.language, entry.prompt, sequence.params().sampling,
                                  static_cast<int>(ids.size())),
            "ids equal plain decoding's");
    require(sequence.length() <= 96, "max_length holds");
    require(static_cast<std::int64_t>(ids.size()) <= sequence.params().max_new_tokens,
            "max_new_tokens holds");
  }

  Script script_;
  FakePair pair_;
  std::vector<Entry> entries_;
};

}  // namespace

void fuzz_decoder(std::span<const std::uint8_t> script) { Fuzzer(script).run(); }

}  // namespace pard::test
