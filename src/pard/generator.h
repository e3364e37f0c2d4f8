#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decoder.h"
#include "onnx/onnx_model.h"
#include "sequence.h"
#include "stats.h"
#include "types.h"

namespace pard {

// How tokens are proposed.
enum class Method : std::uint8_t {
  automatic,       // what the draft is made for: parallel where its folder names a mask token
  plain,           // not at all, even where there is a draft
  parallel,        // PARD: all in one forward
  autoregressive,  // one after the other
};

struct GeneratorOptions {
  std::filesystem::path target;  // ONNX folders (docs/onnx-folder.md)
  std::optional<std::filesystem::path> draft{};
  Method method = Method::automatic;
  std::optional<Token> mask_token_id{};  // absent: what the draft's folder says

  // For requests that bring none of their own. Absent: what the target's folder says.
  std::optional<std::vector<Token>> eos_token_ids{};

  DecoderOptions decoder{};  // num_speculative_tokens, max_batch_size, adaptive
  OnnxModelOptions model{};  // provider, threads, ...; max_length and exact are the target's
  OrtSearch onnxruntime{};
};

// A token that has just been committed, and the text it completed: whole characters, for most
// tokens one or more, for some none yet. Absent: the target's folder has no token_bytes.bin.
struct Piece : TokenEvent {
  std::optional<std::string> text;
};

// Sees every token of its request, in order. False ends the request with FinishReason::stop.
using PieceObserver = std::function<bool(const Piece&)>;

struct Output {
  std::vector<Token> tokens;                  // behind the prompt; the one that ended it included
  std::optional<std::string> text;            // of them, as UTF-8; absent as in Piece
  std::optional<FinishReason> finish_reason;  // absent: there is more to come
  RoundCounts counts;
};

// The face for C++ services: opens ONNX folders, decodes requests together, gives text.
//
//   pard::Generator generator({.target = "target", .draft = "draft"});
//   const pard::Output output = generator.generate(prompt, {.max_new_tokens = 64});
//
// Prompts are token ids: encoding is the caller's. One seed gives one text, whatever the draft, K
// and the other requests. It belongs to one thread at a time; Sequence::cancel() may be called from
// any.
class Generator {
 public:
  // Throws what OnnxModel and Decoder throw, FolderError for a damaged token_bytes.bin,
  // InvalidArgument where the method needs a draft, IncompatibleModels where it is parallel and
  // nothing names a mask token.
  explicit Generator(const GeneratorOptions& options);
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  // Decodes one prompt, or several with the same parameters: each gives what it gives alone.
  // Requests submitted before go on meanwhile. Throws what submit() and step() throw; its own
  // requests are then cancelled.
  Output generate(std::vector<Token> prompt, const GenerationParams& params = {},
                  PieceObserver on_piece = {});
  std::vector<Output> generate(std::span<const std::vector<Token>> prompts,
                               const GenerationParams& params = {});

  // Queues a request; step() decodes all there are, round by round, and says whether there is more
  // to do. Both throw as Decoder's add() and step() do.
  //
  // Pieces joined are the text, but for a last character that was begun when the request was
  // stopped by its observer or cancelled: output_of() has it as U+FFFD.
  std::shared_ptr<Sequence> submit(std::vector<Token> prompt, GenerationParams params = {},
                                   PieceObserver on_piece = {});
  bool step() { return decoder_.step(); }

  // What has come of a request so far.
  Output output_of(const Sequence& sequence) const;

  // What tokens spell; absent as in Piece. What is no UTF-8 becomes U+FFFD.
  std::optional<std::string> text_of(std::span<const Token> tokens) const;

  const OnnxModel& target() const { return *target_; }
  const Decoder& decoder() const { return decoder_; }  // for its counts and times

 private:
  Generator(const GeneratorOptions& options, std::shared_ptr<const OrtLibrary> library);

  std::shared_ptr<OnnxModel> target_;
  std::vector<Token> eos_token_ids_;
  Decoder decoder_;
};

}  // namespace pard
