// The face for C++ services, over the tiny graphs: all of them hold the same weights, so that any
// of them is a good draft for any other.
#include "pard/generator.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "folders.h"
#include "pard/error.h"
#include "pard/onnx/utf8.h"

namespace pard {
namespace {

using test::graphs_or_skip;
using test::mentions;
using test::message_of;

using Prompts = std::vector<std::vector<Token>>;

GeneratorOptions options_for(const char* target, std::optional<const char*> draft = {},
                             Method method = Method::automatic, int k = 4) {
  const std::filesystem::path graphs = std::getenv("PARD_TEST_GRAPHS");
  GeneratorOptions options{.target = graphs / target, .method = method};
  if (draft) options.draft = graphs / *draft;
  if (draft && method != Method::plain) options.decoder.num_speculative_tokens = k;
  options.model.session.intra_op_threads = 1;
  return options;
}

const Prompts five_prompts = {{5, 17, 42}, {7}, {3, 3, 3, 3, 3, 3, 3, 3}, {50, 2, 9}, {11, 12}};

// Long enough to meet split characters, and not all of one kind.
GenerationParams sampled(std::uint64_t seed) {
  return {.sampling = {.temperature = 0.8F, .seed = seed}, .max_new_tokens = 40};
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t size = utf8_size(text);
    if (size == 0) return false;
    text.remove_prefix(size);
  }
  return true;
}

TEST_CASE("generator: text is what the tokens' bytes spell") {
  if (graphs_or_skip() == nullptr) return;
  Generator generator(options_for("gqa"));
  const Output output = generator.generate({5, 17, 42}, sampled(1));
  const auto table = read_token_bytes(options_for("gqa").target, generator.target().contract());
  std::string bytes;
  for (const Token token : output.tokens) bytes += (*table)[token];
  Utf8Stream stream;
  const std::string expected = stream.feed(bytes);
  CHECK(*output.text == expected + stream.flush());
  CHECK(output.counts.committed == std::ssize(output.tokens));
  CHECK(generator.text_of(output.tokens) == output.text);
  CHECK(generator.text_of({}) == "");
}

TEST_CASE("generator: pieces are whole characters, and joined they are the text") {
  if (graphs_or_skip() == nullptr) return;
  Generator generator(options_for("gqa", "portable"));
  int num_joined_from_two = 0;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    CAPTURE(seed);
    std::string joined;
    std::vector<Token> tokens;
    std::string held;  // the text of the piece before
    const Output output = generator.generate({5, 17, 42}, sampled(seed), [&](const Piece& piece) {
      CHECK(is_utf8(*piece.text));
      CHECK(piece.token == piece.sequence.tokens().back());
      if (held.empty() && mentions(*piece.text, "\xE2\x82\xAC")) ++num_joined_from_two;
      held = *piece.text;
      joined += held;
      tokens.push_back(piece.token);
      return true;
    });
    CHECK(joined == *output.text);
    CHECK(tokens == output.tokens);
  }
  CHECK(num_joined_from_two > 0);
}

TEST_CASE("generator: an observer that stops ends the request behind its token") {
  if (graphs_or_skip() == nullptr) return;
  Generator generator(options_for("gqa", "portable"));
  const Output whole = generator.generate({5, 17, 42}, sampled(4));
  int num_halves = 0;
  for (std::size_t length = 1; length <= 20; ++length) {
    CAPTURE(length);
    std::string joined;
    std::size_t seen = 0;
    const Output output = generator.generate({5, 17, 42}, sampled(4), [&](const Piece& piece) {
      joined += *piece.text;
      return ++seen < length;
    });
    CHECK(output.finish_reason == FinishReason::stop);
    CHECK(output.tokens == std::vector(whole.tokens.begin(), whole.tokens.begin() + seen));
    CHECK(seen == length);
    if (joined != *output.text) {
      CHECK(joined + "\xEF\xBF\xBD" == *output.text);
      ++num_halves;
    }
  }
  CHECK(num_halves > 0);
}

TEST_CASE("generator: one seed gives one text, whatever the draft, K and the batch") {
  if (graphs_or_skip() == nullptr) return;
  for (const float temperature : {0.0F, 0.8F}) {
    GenerationParams params = sampled(11);
    params.sampling.temperature = temperature;
    std::vector<std::vector<Token>> expected;
    Generator plain(options_for("gqa"));
    for (const auto& prompt : five_prompts) {
      expected.push_back(plain.generate(prompt, params).tokens);
    }
    for (const Method method : {Method::parallel, Method::autoregressive}) {
      for (const int k : {0, 1, 4, 8}) {
        CAPTURE(k);
        Generator generator(options_for("gqa", "portable", method, k));
        CHECK(generator.generate(five_prompts[0], params).tokens == expected[0]);
        const std::vector<Output> outputs = generator.generate(five_prompts, params);
        for (std::size_t i = 0; i < outputs.size(); ++i) CHECK(outputs[i].tokens == expected[i]);
        CHECK((generator.decoder().counts().drafted > 0) == (k > 0));
      }
    }
  }
}

TEST_CASE("generator: requests that join and leave do not change each other") {
  if (graphs_or_skip() == nullptr) return;
  GeneratorOptions options = options_for("gqa", "portable");
  options.decoder.max_batch_size = 2;
  Generator generator(options);
  std::vector<Output> alone;
  for (std::size_t i = 0; i < five_prompts.size(); ++i) {
    alone.push_back(generator.generate(five_prompts[i], sampled(i)));
  }
  std::vector<std::shared_ptr<Sequence>> sequences;
  for (std::size_t i = 0; i < five_prompts.size(); ++i) {
    sequences.push_back(generator.submit(five_prompts[i], sampled(i)));
    generator.step();
  }
  CHECK_FALSE(generator.output_of(*sequences[4]).finish_reason);
  CHECK(generator.generate(five_prompts[0], sampled(0)).tokens == alone[0].tokens);
  while (generator.step()) {
  }
  for (std::size_t i = 0; i < five_prompts.size(); ++i) {
    const Output output = generator.output_of(*sequences[i]);
    CHECK(output.tokens == alone[i].tokens);
    CHECK(output.text == alone[i].text);
    CHECK(output.finish_reason == alone[i].finish_reason);
  }
  CHECK(generator.generate(Prompts{}).empty());
}

TEST_CASE("generator: what throws cancels its own requests and no others") {
  if (graphs_or_skip() == nullptr) return;
  Generator generator(options_for("gqa", "portable"));
  const Output alone = generator.generate({7}, sampled(2));
  const auto other = generator.submit({7}, sampled(2));
  int seen = 0;
  const auto fail_at_third = [&](const Piece&) -> bool {
    if (++seen == 3) throw std::runtime_error("no more paper");
    return true;
  };
  CHECK_THROWS_WITH_AS(generator.generate({5, 17, 42}, sampled(1), fail_at_third), "no more paper",
                       std::runtime_error);
  CHECK_THROWS_AS(generator.generate(Prompts{{5, 17, 42}, {999}}, sampled(1)), InvalidArgument);
  while (generator.step()) {
  }
  CHECK(seen == 3);
  CHECK(generator.output_of(*other).tokens == alone.tokens);
  CHECK(generator.decoder().counts().committed == 2 * std::ssize(alone.tokens) + 3);
  // From inside a round there is no second one.
  CHECK_THROWS_AS(generator.generate({7}, sampled(2),
                                     [&](const Piece&) {
                                       generator.generate({7});
                                       return true;
                                     }),
                  InvalidArgument);
  CHECK(generator.generate({7}, sampled(2)).tokens == alone.tokens);
}

TEST_CASE("generator: several work side by side, each in a thread of its own") {
  if (graphs_or_skip() == nullptr) return;
  const auto decode = [](std::vector<Output>& outputs) {
    outputs = Generator(options_for("gqa", "portable")).generate(five_prompts, sampled(5));
  };
  std::vector<Output> expected;
  decode(expected);
  std::vector<Output> outputs[2];
  {
    const std::jthread first(decode, std::ref(outputs[0]));
    const std::jthread second(decode, std::ref(outputs[1]));
  }
  for (const auto& side : outputs) {
    REQUIRE(side.size() == expected.size());
    for (std::size_t i = 0; i < side.size(); ++i) CHECK(side[i].tokens == expected[i].tokens);
  }
}

TEST_CASE("generator: end tokens are the folder's, unless options or the request have their own") {
  if (graphs_or_skip() == nullptr) return;
  const auto ends_with = [](Generator& generator, GenerationParams params) {
    const Output output = generator.generate({5, 17, 42}, params);
    return output.finish_reason == FinishReason::eos ? output.tokens.back() : -1;
  };
  GeneratorOptions options = options_for("gqa");
  options.eos_token_ids = std::vector<Token>{};
  Generator endless(options);
  const std::vector<Token> text = endless.generate({5, 17, 42}, sampled(1)).tokens;
  REQUIRE(text.size() == 40);
  CHECK(ends_with(endless, sampled(1)) == -1);
  options.eos_token_ids = {text[5]};
  Generator ending(options);
  CHECK(ends_with(ending, sampled(1)) == text[5]);
  GenerationParams params = sampled(1);
  params.eos_token_ids = {text[3]};
  CHECK(ends_with(ending, params) == text[3]);
}

TEST_CASE("generator: the method is what the draft is made for, or what was asked for") {
  if (graphs_or_skip() == nullptr) return;
  const auto acceptance = [](GeneratorOptions options) {
    Generator generator(options);
    const RoundCounts counts = generator.generate({5, 17, 42}, sampled(1)).counts;
    return counts.drafted == 0
               ? 0.0
               : static_cast<double>(counts.accepted) / static_cast<double>(counts.drafted);
  };
  // The same weights: one token after the other they agree, but for ids the tokenizer does not
  // know; several at once they were never trained to say.
  constexpr double often = 0.7;
  CHECK(acceptance(options_for("gqa", "portable", Method::autoregressive)) > often);
  CHECK(acceptance(options_for("gqa", "portable", Method::parallel)) < often);
  CHECK(acceptance(options_for("gqa", "portable")) < often);
  CHECK(acceptance(options_for("builder", "builder")) > often);  // it names no mask token
  CHECK(acceptance(options_for("gqa", "portable", Method::plain)) == 0);
  CHECK(acceptance(options_for("gqa")) == 0);
  GeneratorOptions named = options_for("builder", "builder");
  named.mask_token_id = 59;
  CHECK(acceptance(named) < often);
}

TEST_CASE("generator: pairs and options that cannot work are refused") {
  if (graphs_or_skip() == nullptr) return;
  for (const Method method : {Method::parallel, Method::autoregressive}) {
    CHECK(mentions(message_of<InvalidArgument>([&] { Generator(options_for("gqa", {}, method)); }),
                   "needs a draft"));
  }
  CHECK(mentions(message_of<IncompatibleModels>(
                     [] { Generator(options_for("builder", "builder", Method::parallel)); }),
                 "mask_token_id"));
  CHECK_NOTHROW(Generator(options_for("gqa", "builder")));  // sizes alone refuse nothing
  CHECK_THROWS_AS(Generator(options_for("gqa", "nothing")), FolderError);
  CHECK_THROWS_AS(Generator(options_for("gqa", "portable", Method::parallel, 65)), InvalidArgument);
  GeneratorOptions options = options_for("gqa", "portable");
  options.mask_token_id = 64;
  CHECK_THROWS_AS(Generator{options}, IncompatibleModels);
  options = options_for("gqa");
  options.onnxruntime.path = "/nowhere";
  CHECK_THROWS_AS(Generator{options}, RuntimeMissing);

  const test::Scratch scratch;
  for (const char* file : {"model.onnx", "pard_rt.json"}) {
    scratch.write(file, test::read(options_for("gqa").target / file));
  }
  options = options_for("gqa");
  options.target = scratch.path();
  CHECK_FALSE(Generator(options).generate({5}, sampled(1)).text);
  scratch.write("token_bytes.bin", "abcd");
  CHECK_THROWS_AS(Generator{options}, FolderError);
}

TEST_CASE("generator: max_length bounds the target, and a shorter draft stops proposing") {
  if (graphs_or_skip() == nullptr) return;
  const test::Scratch scratch;
  const auto folder = options_for("portable").target;
  scratch.write("model.onnx", test::read(folder / "model.onnx"));
  scratch.write("pard_rt.json", test::replaced(test::read(folder / "pard_rt.json"),
                                               "\"max_length\": 600", "\"max_length\": 20"));
  GeneratorOptions options = options_for("gqa", "portable");
  options.draft = scratch.path();
  options.model.max_length = 30;
  options.eos_token_ids = std::vector<Token>{};
  Generator generator(options);
  const Output output = generator.generate({5, 17, 42}, sampled(1));
  CHECK(output.tokens.size() == 27);
  CHECK(output.finish_reason == FinishReason::length);
  CHECK(output.counts.drafted > 0);
}

}  // namespace
}  // namespace pard
