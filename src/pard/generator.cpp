#include "generator.h"

#include <algorithm>
#include <utility>

#include "composed_executor.h"
#include "draft.h"
#include "error.h"
#include "onnx/utf8.h"

namespace pard {

namespace {

OnnxModelOptions target_options(const GeneratorOptions& options) {
  OnnxModelOptions model = options.model;
  model.is_target = true;
  return model;
}

// max_length is the target's to heed: a draft that is shorter just stops proposing.
OnnxModelOptions draft_options(const GeneratorOptions& options) {
  OnnxModelOptions model = options.model;
  model.is_target = false;
  model.exact = false;
  model.max_length.reset();
  return model;
}

std::shared_ptr<Drafter> open_drafter(const GeneratorOptions& options,
                                      std::shared_ptr<const OrtLibrary> library) {
  const bool automatic = options.method == Method::automatic;
  if (options.method == Method::plain || (automatic && !options.draft)) return nullptr;
  if (!options.draft) {
    throw InvalidArgument({"The method needs a draft", "the folder of one", "none",
                           "Set draft, or take Method::plain."});
  }
  const auto draft =
      std::make_shared<OnnxModel>(*options.draft, draft_options(options), std::move(library));
  const std::optional<Token> mask =
      options.mask_token_id ? options.mask_token_id : draft->contract().mask_token_id;
  if (options.method == Method::autoregressive || (automatic && !mask)) {
    return std::make_shared<AutoregressiveDrafter>(draft);
  }
  if (!mask) {
    throw IncompatibleModels({"'" + draft->info().name + "' is no parallel draft",
                              "a mask_token_id in its folder or the options", "none",
                              "Take Method::autoregressive, or set the mask token it was "
                              "trained with."});
  }
  return std::make_shared<ParallelDrafter>(draft, *mask);
}

// Requests that must not outlive the call that made them.
struct OwnRequests {
  ~OwnRequests() {
    for (const auto& sequence : sequences) sequence->cancel();
  }
  bool finished() const {
    return std::ranges::all_of(sequences, [](const auto& s) { return s->finished(); });
  }

  std::vector<std::shared_ptr<Sequence>> sequences{};
};

}  // namespace

Generator::Generator(const GeneratorOptions& options)
    : Generator(options, OrtLibrary::open(options.onnxruntime, options.model.session.provider)) {}

Generator::Generator(const GeneratorOptions& options, std::shared_ptr<const OrtLibrary> library)
    : target_(std::make_shared<OnnxModel>(options.target, target_options(options), library)),
      eos_token_ids_(options.eos_token_ids.value_or(target_->contract().eos_token_ids)),
      decoder_(
          std::make_unique<ComposedExecutor>(target_, open_drafter(options, std::move(library))),
          options.decoder) {}

Output Generator::generate(std::vector<Token> prompt, const GenerationParams& params,
                           PieceObserver on_piece) {
  OwnRequests requests;
  requests.sequences.push_back(submit(std::move(prompt), params, std::move(on_piece)));
  while (!requests.finished()) step();
  return output_of(*requests.sequences.front());
}

std::vector<Output> Generator::generate(std::span<const std::vector<Token>> prompts,
                                        const GenerationParams& params) {
  OwnRequests requests;
  for (const auto& prompt : prompts) requests.sequences.push_back(submit(prompt, params));
  while (!requests.finished()) step();
  std::vector<Output> outputs;
  for (const auto& sequence : requests.sequences) outputs.push_back(output_of(*sequence));
  return outputs;
}

std::shared_ptr<Sequence> Generator::submit(std::vector<Token> prompt, GenerationParams params,
                                            PieceObserver on_piece) {
  if (params.eos_token_ids.empty()) params.eos_token_ids = eos_token_ids_;
  TokenObserver observer;
  if (on_piece) {
    observer = [this, on_piece = std::move(on_piece),
                stream = Utf8Stream()](const TokenEvent& event) mutable {
      Piece piece{event, {}};
      if (const TokenBytes* table = target_->info().token_bytes.get()) {
        piece.text = stream.feed((*table)[event.token]);
        if (event.sequence.finished()) *piece.text += stream.flush();
      }
      return on_piece(piece);
    };
  }
  return decoder_.add(std::move(prompt), std::move(params), std::move(observer));
}

Output Generator::output_of(const Sequence& sequence) const {
  const std::span<const Token> tokens = sequence.generated();
  return {
      {tokens.begin(), tokens.end()}, text_of(tokens), sequence.finish_reason(), sequence.counts()};
}

std::optional<std::string> Generator::text_of(std::span<const Token> tokens) const {
  const TokenBytes* table = target_->info().token_bytes.get();
  if (table == nullptr) return std::nullopt;
  Utf8Stream stream;
  std::string text;
  for (const Token token : tokens) text += stream.feed((*table)[token]);
  return text + stream.flush();
}

}  // namespace pard
