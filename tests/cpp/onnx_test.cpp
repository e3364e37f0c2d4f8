// Models over ONNX folders. What needs no ONNX Runtime always runs.
#include "pard/onnx/onnx_model.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "folders.h"
#include "pard/choose.h"
#include "pard/composed_executor.h"
#include "pard/decoder.h"
#include "pard/draft.h"
#include "pard/error.h"
#include "pard/logits_device.h"
#include "pard/onnx/graph_check.h"
#include "pard/onnx/graph_runner.h"
#include "pard/onnx/json.h"
#include "pard/onnx/kv_buffer.h"
#include "pard/onnx/onnx_file.h"

namespace pard {
namespace {

namespace fs = std::filesystem;
using test::graphs_or_skip;
using test::mentions;
using test::message_of;
using test::read;
using test::replaced;
using test::Scratch;

constexpr const char* contract_text = R"({
  "format_version": 1, "name": "m", "form": "gqa", "model": "model.onnx", "num_layers": 2,
  "num_kv_heads": 2, "head_dim": 8, "kv_dtype": "float32", "logits_dtype": "float16",
  "vocab_size": 64, "num_tokens": 60, "max_length": 100, "unknown": [{}],
  "bos_token_id": null, "eos_token_ids": [1, 2], "mask_token_id": 59, "weights": "int4"})";

TEST_CASE("json: values, escapes and numbers") {
  const json::Value value =
      json::parse(" {\"a\\n\\u00e9\\ud83d\\ude00\": [1, -2.5e1, true, null, \"\"], \"b\": {}} ");
  const auto* list = value.find("a\n\xC3\xA9\xF0\x9F\x98\x80");
  REQUIRE(list != nullptr);
  const auto& items = *list->as<json::Value::Array>();
  CHECK(*items[0].as<std::int64_t>() == 1);
  CHECK(*items[1].as<double>() == -25.0);
  CHECK(*items[2].as<bool>());
  CHECK(items[3].is_null());
  CHECK(value.find("c") == nullptr);
  CHECK(*json::parse("-9223372036854775808").as<std::int64_t>() == INT64_MIN);
  CHECK(json::parse("9223372036854775808").kind() == "a fraction");
}

TEST_CASE("json: what is not strictly JSON is refused") {
  for (const char* text : {"",
                           "{",
                           "[1,]",
                           "{\"a\":1,}",
                           "{\"a\" 1}",
                           "01",
                           "1.",
                           "1e",
                           "-",
                           "+1",
                           "nul",
                           "'a'",
                           "\"a",
                           "\"\\x\"",
                           "\"\\ud800\"",
                           "\"\\u12\"",
                           "\"\x01\"",
                           "\"\xC0\xAF\"",
                           "\"\xED\xA0\x80\"",
                           "\"\xF4\x90\x80\x80\"",
                           "1 2",
                           "{\"a\":1,\"a\":2}",
                           "1e999",
                           "NaN",
                           "// c\n1"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(json::parse(text), json::ParseError);
  }
  CHECK_NOTHROW(json::parse(std::string(60, '[') + std::string(60, ']')));
  CHECK_THROWS_AS(json::parse(std::string(100'000, '[')), json::ParseError);
}

TEST_CASE("folder: every key is read") {
  const FolderContract contract = parse_pard_contract(contract_text, "f");
  CHECK(contract.form == GraphForm::gqa);
  CHECK(contract.names.new_key == "present.%d.key");
  CHECK(contract.logits_dtype == DType::f16);
  CHECK(contract.num_tokens == 60);
  CHECK(!contract.bos_token_id);
  CHECK(contract.eos_token_ids == std::vector<Token>{1, 2});
  CHECK(contract.mask_token_id == 59);
  CHECK(!contract.requires_own_attention);
  const std::string own = replaced(contract_text, "{\n", "{\"requires_own_attention\": true,\n");
  CHECK(parse_pard_contract(own, "f").requires_own_attention);
}

TEST_CASE("folder: an error names file, key, expected and actual") {
  const auto error = [](const std::string& old, const std::string& now) {
    return message_of<FolderError>(
        [&] { parse_pard_contract(replaced(contract_text, old, now), "the/file"); });
  };
  const std::string missing = error("\"head_dim\": 8,", "");
  CHECK(mentions(missing, "'the/file'"));
  CHECK(mentions(missing, "head_dim"));
  CHECK(mentions(missing, "got nothing"));
  CHECK(mentions(error("\"head_dim\": 8", "\"head_dim\": \"8\""), "got a string"));
  CHECK(mentions(error("\"head_dim\": 8", "\"head_dim\": 8.5"), "got a fraction"));
  CHECK(mentions(error("\"format_version\": 1", "\"format_version\": 2"), "format_version"));
  CHECK(mentions(error("\"gqa\"", "\"paged\""), "one of portable, gqa, got 'paged'"));
  CHECK(mentions(error("\"model.onnx\"", "\"../model.onnx\""), "model"));
  CHECK(mentions(error("\"num_tokens\": 60", "\"num_tokens\": 65"), "num_tokens"));
  CHECK(mentions(error("\"mask_token_id\": 59", "\"mask_token_id\": 64"), "mask_token_id"));
  CHECK(mentions(error("[1, 2]", "[1, 64]"), "eos_token_ids"));
  CHECK(mentions(error("[1, 2]", "[1, null]"), "eos_token_ids"));
  CHECK(mentions(error("{\n", "{\"requires_own_attention\": 1,\n"), "true or false"));
  CHECK(mentions(error("{\n", "[\n"), "line 2"));
  CHECK(mentions(message_of<FolderError>([] { parse_builder_contract("{\"model\": {}}", "f"); }),
                 "decoder-only"));
}

TEST_CASE("folder: a builder's folder of another layout is refused by the entry's name") {
  const auto error = [](const std::string& entry) {
    const std::string text = "{\"model\": {\"decoder\": {" + entry + "}}}";
    return message_of<FolderError>([&] { parse_builder_contract(text, "f"); });
  };
  CHECK(mentions(error("\"pipeline\": []"), "model.decoder.pipeline"));
  CHECK(mentions(error("\"sliding_window\": {\"slide_inputs\": false}"), "slide_key_value_cache"));
  CHECK(mentions(error("\"sliding_window\": {\"slide_key_value_cache\": false}"), "slide_inputs"));
  const std::string still =
      "\"sliding_window\": {\"slide_key_value_cache\": false, \"slide_inputs\": false}";
  CHECK(mentions(error(still), "model.decoder.filename"));  // the next that is missing
  CHECK(mentions(
      message_of<FolderError>([] { parse_builder_contract("{\"model\": {\"vision\": {}}}", "f"); }),
      "model.vision"));
}

TEST_CASE("folder: missing, empty, not ours") {
  const Scratch scratch;
  CHECK(mentions(message_of<FolderError>([&] { read_folder(scratch.path() / "none"); }),
                 "none there"));
  CHECK(mentions(message_of<FolderError>([&] { read_folder(scratch.path()); }), "neither"));
}

TEST_CASE("onnx file: what is no graph is refused") {
  for (const std::string& bytes : {std::string(), std::string("hello"), std::string("\x3a\x7f"),
                                   std::string(20, '\xFF'), std::string("\x08\x07")}) {
    CHECK_THROWS_AS(summarize_onnx(bytes, "f"), FolderError);
  }
  CHECK(mentions(message_of<FolderError>(
                     [] { summarize_onnx("version https://git-lfs.github.com/spec/v1", "f"); }),
                 "Git LFS"));
}

TEST_CASE("onnx file: attention is plain where a node asks for nothing else") {
  const auto message = [](int number, const std::string& bytes) {  // fewer than 128 of them
    const int key = number * 8 + 2;
    const std::string head =
        key < 128 ? std::string{static_cast<char>(key)}
                  : std::string{static_cast<char>(key % 128 + 128), static_cast<char>(key / 128)};
    return head + static_cast<char>(bytes.size()) + bytes;
  };
  const auto attribute = [&](const char* name, int value) {
    return message(5, message(1, name) + static_cast<char>(3 << 3) + static_cast<char>(value));
  };
  const std::string attends = message(4, "GroupQueryAttention");
  const auto in_graph = [&](const std::string& node) { return message(1, node); };
  const auto is_plain = [&](const std::string& model) {
    return summarize_onnx(model, "f").attention_is_plain;
  };
  const auto node_is_plain = [&](const std::string& node) {
    return is_plain(message(7, in_graph(node)));
  };
  CHECK(node_is_plain(attends));
  CHECK(node_is_plain(attends + attribute("num_heads", 4) + attribute("causal", 1)));
  CHECK_FALSE(node_is_plain(attends + attribute("local_window_size", 0)));
  CHECK(node_is_plain(attends + attribute("local_window_size", 8)));
  CHECK(node_is_plain(attends + attribute("smooth_softmax", 1)));
  for (const char* lacking : {"sliding_window_cache", "qk_output", "kv_cache_bit_width"}) {
    CHECK_FALSE(node_is_plain(attends + attribute(lacking, 1)));
  }
  CHECK_FALSE(node_is_plain(attends + attribute("causal", 0)));
  CHECK_FALSE(node_is_plain(attends + attribute("unheard_of", 0)));
  std::string inputs;
  for (int i = 0; i < 9; ++i) inputs += message(1, "x");
  const std::string none = message(1, "");
  CHECK(node_is_plain(attends + inputs + none + none + message(1, "sinks")));
  CHECK(node_is_plain(attends + inputs + none + none + none + none));
  CHECK_FALSE(node_is_plain(attends + inputs + message(1, "positions")));
  CHECK_FALSE(node_is_plain(attends + inputs + none + message(1, "bias")));
  CHECK_FALSE(node_is_plain(attends + inputs + none + none + none + message(1, "scales")));

  const std::string branch = message(5, message(1, "then_branch") + message(6, in_graph(attends)));
  CHECK_FALSE(node_is_plain(message(4, "If") + branch));
  CHECK_FALSE(is_plain(message(25, message(7, attends)) + message(7, "")));

  const auto windowed = [&](int window, int drops) {
    return summarize_onnx(message(7, in_graph(attends + attribute("local_window_size", window) +
                                              attribute("sliding_window_cache", drops))),
                          "f");
  };
  CHECK(windowed(8, 0).dropping_window == 0);
  CHECK(windowed(8, 1).dropping_window == 8);
  CHECK(windowed(8, 0).attention_has_windows);
  CHECK_FALSE(windowed(0, 0).attention_has_windows);

  std::string deep = attends;
  while (deep.size() < 100) {
    deep = message(4, "If") + message(5, message(6, in_graph(deep)));
  }
  CHECK_FALSE(node_is_plain(deep));
}

// What it is told to do, it does; what nobody wrote is no number.
class PlainMemory final : public Memory {
 public:
  const ort::MemoryInfo* info() const override { return nullptr; }
  MemoryBlock allocate(std::size_t bytes, bool zeroed) const override {
    if (full) {
      throw std::bad_alloc();
    }
    auto owner = std::make_shared<std::vector<std::byte>>(bytes, std::byte(zeroed ? 0x00 : 0xFF));
    return MemoryBlock(owner->data(), bytes, owner);
  }
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  void read(std::byte*, const std::byte*, std::size_t) const override {}
  bool full = false;
};

TEST_CASE("kv buffer: rows survive growth in both layouts") {
  const auto memory = std::make_shared<PlainMemory>();
  for (const KvLayout layout : {KvLayout::rows_first, KvLayout::heads_first}) {
    constexpr std::int64_t heads = 3;
    const KvShape shape{2, heads, 5, sizeof(float), layout};
    KvBuffer buffer(shape, 10'000, false, memory);
    CHECK(buffer.reserve(10));
    const auto at = [&](std::size_t part, std::int64_t row, std::int64_t head) {
      const std::int64_t index =
          layout == KvLayout::rows_first ? row * heads + head : head * buffer.capacity() + row;
      return reinterpret_cast<float*>(buffer.part(part)) + index * 5;
    };
    const auto value = [](std::size_t part, std::int64_t row, std::int64_t head) {
      return static_cast<float>(part) * 1e4f + static_cast<float>(row * 10 + head);
    };
    for (std::size_t part = 0; part < 4; ++part) {
      for (std::int64_t row = 0; row < 10; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          *at(part, row, head) = value(part, row, head);
        }
      }
    }
    CHECK_FALSE(buffer.reserve(200));
    CHECK(buffer.reserve(1000));
    CHECK(buffer.capacity() >= 1000);
    for (std::size_t part = 0; part < 4; ++part) {
      for (std::int64_t row = 0; row < 10; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          REQUIRE(*at(part, row, head) == value(part, row, head));
        }
      }
    }
    memory->full = true;
    CHECK_THROWS_AS(buffer.reserve(10'000), std::bad_alloc);
    memory->full = false;
    CHECK(*at(3, 9, 2) == value(3, 9, 2));
    CHECK(buffer.reserve(9'000));
    CHECK(buffer.reserve(10'000));
    CHECK(buffer.capacity() == 10'000);
  }
}

TEST_CASE("kv buffer: a text that grows row by row moves it a few times only") {
  const auto memory = std::make_shared<PlainMemory>();
  KvBuffer buffer({1, 1, 4, sizeof(float), KvLayout::heads_first}, 10'000, false, memory);
  int moves = 0;
  for (std::int64_t rows = 1; rows <= 10'000; ++rows) moves += buffer.reserve(rows) ? 1 : 0;
  CHECK(moves <= 8);  // 256, 512, .. 8,192 and 10,000
}

TEST_CASE("ONNX Runtime: none found, none usable") {
  const Scratch scratch;
  const auto open = [&](const std::string& path, const char* provider) {
    return message_of<RuntimeMissing>([&] { OrtLibrary::open({path, {}}, provider); });
  };
  CHECK(mentions(open(scratch.path().string(), "cpu"), "pip install onnxruntime"));
  CHECK(mentions(open(scratch.path().string(), "cuda"), "pip install onnxruntime-gpu"));
  scratch.write("libonnxruntime.so.1.30.0", "no library");
  CHECK(mentions(open(scratch.path().string(), "cpu"), "libonnxruntime.so.1.30.0"));
  CHECK(mentions(open("libc.so.6", "cpu"), "not found"));
  CHECK_THROWS_AS(OrtLibrary::open({}, "tpu"), InvalidArgument);
}

// Everything below runs graphs.

using Row = std::vector<float>;
using Rows = std::vector<Row>;

std::vector<Token> some_tokens(std::size_t count) {
  std::vector<Token> tokens(count);
  for (std::size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<Token>(i * i * 7 + i * 3 + 5) % 59;
  }
  return tokens;
}

Rows copy(const LogitsView& logits) {
  Rows rows;
  for (std::int64_t i = 0; i < logits.num_rows; ++i) {
    widen(logits.row(i), rows.emplace_back(static_cast<std::size_t>(logits.vocab_size)).data());
  }
  return rows;
}

Rows forward(Model& model, SequenceId sequence, std::size_t past, std::span<const Token> tokens,
             std::size_t num_rows) {
  const ForwardItem item{sequence, static_cast<std::int64_t>(past), tokens,
                         static_cast<std::int64_t>(num_rows)};
  return copy(model.forward({&item, 1}));
}

// The rows [first, last) of one forward over everything, without a cache.
Rows recompute(Model& model, std::span<const Token> tokens, std::size_t first, std::size_t last) {
  constexpr SequenceId fresh = 1'000'000;
  Rows rows = forward(model, fresh, 0, tokens.first(last), last - first);
  model.release(fresh);
  return rows;
}

void check_close(const Rows& actual, const Rows& expected, double tolerance) {
  REQUIRE(actual.size() == expected.size());
  double most = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    for (std::size_t j = 0; j < actual[i].size(); ++j) {
      most = std::max(most, std::abs(static_cast<double>(actual[i][j] - expected[i][j])));
    }
  }
  CHECK(most <= tolerance);
}

struct Variant {
  const char* folder;
  double tolerance;
  bool static_shapes = false;
  bool device_memory = false;
  bool own_attention = true;
};

constexpr Variant variants[] = {{"portable", 2e-5},
                                {"gqa", 2e-5},
                                {"builder", 2e-5},
                                {"external", 2e-5},
                                {"int4", 2e-4},
                                {"portable", 2e-5, true},
                                {"gqa_f16", 5e-2},
                                {"portable_f16", 5e-2},
                                {"portable_int4", 2e-5},
                                {"portable", 2e-5, false, true},
                                {"portable", 2e-5, true, true},
                                {"gqa", 2e-5, false, true},
                                {"gqa", 2e-5, false, false, false},
                                {"builder", 2e-5, false, false, false},
                                {"portable_f16", 5e-2, true, true}};

// In the place of one that the host cannot read.
class CountingDevice final : public LogitsDevice {
 public:
  explicit CountingDevice(int& num_rows) : num_rows_(num_rows) {}

  void choose(const LogitsView&, std::span<const RowRequest>,
              std::span<std::optional<Token>>) const override {}
  void read(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
    ++num_rows_;
  }

 private:
  int& num_rows_;
};

std::unique_ptr<OnnxModel> open_variant(const char* graphs, const Variant& variant) {
  OnnxModelOptions options;
  options.static_shapes = variant.static_shapes;
  options.device_memory = variant.device_memory;
  options.own_attention = variant.own_attention;
  options.session.intra_op_threads = 1;
  return std::make_unique<OnnxModel>(fs::path(graphs) / variant.folder, options);
}

// Calls `check(model, variant)` for every variant, where there are graphs.
template <class Check>
void with_every_variant(Check&& check) {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  for (const Variant& variant : variants) {
    CAPTURE(variant.folder);
    CAPTURE(variant.static_shapes);
    CAPTURE(variant.device_memory);
    check(*open_variant(graphs, variant), variant);
  }
}

TEST_CASE("onnx model: chunks, several rows and single rows give what a full recompute gives") {
  with_every_variant([](OnnxModel& model, const Variant& variant) {
    const auto tokens = some_tokens(40);
    const auto all = std::span<const Token>(tokens);
    const Rows expected = recompute(model, all, 0, 40);
    CHECK(forward(model, 1, 0, all.first(7), 0).empty());
    check_close(forward(model, 1, 7, all.subspan(7, 13), 2), {expected[18], expected[19]},
                variant.tolerance);
    check_close(forward(model, 1, 20, all.subspan(20, 9), 9),
                Rows(expected.begin() + 20, expected.begin() + 29), variant.tolerance);
    for (std::size_t i = 20; i < 40; ++i) {  // over the rows of the chunk just run
      check_close(forward(model, 1, i, all.subspan(i, 1), 1), {expected[i]}, variant.tolerance);
    }
  });
}

TEST_CASE("onnx model: rolled back rows leave no trace") {
  with_every_variant([](OnnxModel& model, const Variant&) {
    const auto tokens = some_tokens(30);
    const auto all = std::span<const Token>(tokens);
    const std::vector<Token> wrong(9, 42);
    forward(model, 1, 0, all.first(10), 0);
    const Rows before = forward(model, 1, 10, all.subspan(10, 9), 9);
    forward(model, 1, 10, wrong, 9);
    forward(model, 1, 14, wrong, 9);
    CHECK(forward(model, 1, 10, all.subspan(10, 9), 9) == before);
    auto half = std::vector<Token>(all.begin() + 10, all.begin() + 14);
    half.insert(half.end(), 5, 42);
    const Rows mixed = forward(model, 1, 10, half, 9);
    CHECK(Rows(mixed.begin(), mixed.begin() + 4) == Rows(before.begin(), before.begin() + 4));
  });
}

TEST_CASE("onnx model: buffers grow to the limit and no further") {
  with_every_variant([](OnnxModel& model, const Variant& variant) {
    const auto length = static_cast<std::size_t>(model.info().max_length);
    const auto tokens = some_tokens(length + 1);
    const auto all = std::span<const Token>(tokens);
    const Rows expected = recompute(model, all, length - 1, length);
    std::size_t past = 0;
    for (; past + 50 < length; past += 50) {
      forward(model, 1, past, all.subspan(past, 50), 0);
    }
    forward(model, 1, past, all.subspan(past, length - 1 - past), 0);
    check_close(forward(model, 1, length - 1, all.subspan(length - 1, 1), 1), expected,
                10 * variant.tolerance);
    CHECK_THROWS_AS(forward(model, 1, length, all.subspan(length, 1), 1), InvalidArgument);
    CHECK_THROWS_AS(forward(model, 1, length - 1, all.subspan(length - 1, 2), 1), InvalidArgument);
  });
}

TEST_CASE("onnx model: a batch gives each sequence its rows, in order") {
  with_every_variant([](OnnxModel& model, const Variant& variant) {
    const auto tokens = some_tokens(30);
    const auto all = std::span<const Token>(tokens);
    const Rows expected = recompute(model, all, 0, 30);
    const auto tail = all.subspan(3);
    const Rows other = recompute(model, tail, 0, 20);
    const ForwardItem first[] = {
        {1, 0, all.first(5), 0}, {2, 0, tail.first(6), 1}, {3, 0, all.first(4), 2}};
    check_close(copy(model.forward(first)), {other[5], expected[2], expected[3]},
                variant.tolerance);
    const ForwardItem second[] = {{3, 4, all.subspan(4, 3), 1},
                                  {2, 6, tail.subspan(6, 4), 3},
                                  {1, 5, all.subspan(5, 1), 1},
                                  {4, 0, tail.first(2), 0}};
    check_close(copy(model.forward(second)),
                {expected[6], other[7], other[8], other[9], expected[5]}, variant.tolerance);
    model.release(2);
    model.release(99);
    CHECK_THROWS_AS(forward(model, 2, 6, tail.subspan(6, 1), 1), InvalidArgument);
    check_close(forward(model, 3, 7, all.subspan(7, 1), 1), {expected[7]}, variant.tolerance);
  });
}

TEST_CASE("onnx model: all forms of one decoder agree") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const auto tokens = some_tokens(50);
  const auto portable = open_variant(graphs, {"portable", 0});
  const Rows expected = recompute(*portable, tokens, 0, 50);
  for (const Variant& variant : variants) {
    CAPTURE(variant.folder);
    const auto model = open_variant(graphs, variant);
    if (!std::string_view(variant.folder).ends_with("int4")) {
      check_close(recompute(*model, tokens, 0, 50), expected, std::max(1e-4, variant.tolerance));
    }
  }
}

TEST_CASE("onnx model: attention is our own where it can be, on several threads as on one") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  for (const char* folder : {"gqa", "builder", "int4"}) {
    CHECK(open_variant(graphs, {folder, 0})->own_attention());
    CHECK_FALSE(open_variant(graphs, {folder, 0, false, false, false})->own_attention());
  }
  for (const char* folder : {"gqa_f16", "portable"}) {
    CHECK_FALSE(open_variant(graphs, {folder, 0})->own_attention());
  }
  OnnxModelOptions options;
  options.session.intra_op_threads = 3;
  OnnxModel parallel(fs::path(graphs) / "gqa", options);
  const auto one = open_variant(graphs, {"gqa", 0});
  const auto tokens = some_tokens(300);
  CHECK(recompute(parallel, tokens, 0, 300) == recompute(*one, tokens, 0, 300));
}

TEST_CASE("onnx model: speculative decoding emits what plain decoding emits") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const auto decode = [](std::shared_ptr<Model> target, std::unique_ptr<Drafter> drafter, int k) {
    DecoderOptions options;
    options.num_speculative_tokens = k;
    Decoder decoder(std::make_unique<ComposedExecutor>(std::move(target), std::move(drafter), 16),
                    options);
    GenerationParams params;
    params.max_new_tokens = 40;
    std::vector<std::shared_ptr<Sequence>> sequences;
    for (std::size_t length : {1U, 9U, 40U}) {
      sequences.push_back(decoder.add(some_tokens(length), params));
    }
    decoder.run();
    std::vector<std::vector<Token>> texts;
    for (const auto& sequence : sequences) {
      texts.emplace_back(sequence->generated().begin(), sequence->generated().end());
    }
    return texts;
  };
  std::map<std::string_view, std::vector<std::vector<Token>>> texts;
  for (const Variant& variant : variants) {
    CAPTURE(variant.folder);
    CAPTURE(variant.static_shapes);
    CAPTURE(variant.device_memory);
    const std::shared_ptr<OnnxModel> target = open_variant(graphs, variant);
    const auto plain = decode(target, nullptr, 0);
    CHECK(plain[0].size() == 40);
    CHECK(texts.try_emplace(variant.folder, plain).first->second == plain);
    for (int k : {1, 4, 8}) {
      const std::shared_ptr<Model> draft = open_variant(graphs, variant);
      CHECK(decode(target, std::make_unique<ParallelDrafter>(draft, 59), k) == plain);
      const std::shared_ptr<Model> same = open_variant(graphs, variant);
      CHECK(decode(target, std::make_unique<AutoregressiveDrafter>(same), k) == plain);
    }
  }
}

// The CPU's own memory stands for a device's, full of NaN where nobody wrote.
TEST_CASE("onnx model: in a device's memory are the keys and values of the host's, bit for bit") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const auto tokens = some_tokens(599);
  const auto all = std::span<const Token>(tokens);
  for (const Variant& variant : variants) {
    if (variant.device_memory) {
      continue;
    }
    CAPTURE(variant.folder);
    CAPTURE(variant.static_shapes);
    Variant on_device = variant;
    on_device.device_memory = true;
    const auto host = open_variant(graphs, variant);
    const auto device = open_variant(graphs, on_device);
    std::size_t past = 0;
    // Every second forward is rolled back in part; buffers grow at 256 and at 512 rows.
    for (const std::size_t rows : {100U, 9U, 1U, 150U, 9U, 200U, 5U, 60U, 9U, 50U, 1U, 12U}) {
      const auto next = all.subspan(past, rows);
      const std::size_t wanted = std::min<std::size_t>(rows, 9);
      REQUIRE(forward(*host, 1, past, next, wanted) == forward(*device, 1, past, next, wanted));
      past += rows % 2 == 0 ? rows : rows / 2 + 1;
      for (std::int64_t layer = 0; layer < host->contract().num_layers; ++layer) {
        const auto length = static_cast<std::int64_t>(past);
        const CachedRows expected = host->cached_rows(1, layer, length);
        const CachedRows actual = device->cached_rows(1, layer, length);
        REQUIRE(expected.keys == actual.keys);
        REQUIRE(expected.values == actual.values);
      }
    }
    CHECK(past > 512);
  }
}

TEST_CASE("onnx model: static shapes are few") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const auto model = open_variant(graphs, {"portable", 0, true});
  const auto tokens = some_tokens(600);
  const auto all = std::span<const Token>(tokens);
  forward(*model, 1, 0, all.first(590), 0);
  for (std::size_t past = 1; past < 560; ++past) {
    const std::size_t rows = 1 + past % 31;
    for (const std::size_t wanted : {std::size_t{0}, std::size_t{1}, 1 + past % rows}) {
      forward(*model, 1, past, all.subspan(past, rows), wanted);
    }
  }
  // Three pasts (256, 512, 1024); rows of eight sizes (1 to 32) and logits of those that are no
  // larger; and the first forward.
  CHECK(model->num_shapes() <= 3 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8) + 3);
  CHECK(open_variant(graphs, {"portable", 0})->num_shapes() == 0);
}

TEST_CASE("onnx model: a row has the same bits in forwards of any size, keys and values too") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const auto tokens = some_tokens(200);
  const auto all = std::span<const Token>(tokens);
  for (const Variant& variant : {Variant{"gqa", 0},
                                 {"gqa_f16", 0},
                                 {"builder", 0},
                                 {"int4", 0},
                                 {"int4_block64", 0},
                                 {"int4_block128", 0},
                                 {"int8", 0},
                                 {"int8_block128", 0},
                                 {"gqa", 0, false, false, false},
                                 {"int4_block64", 0, false, true, false}}) {
    CAPTURE(variant.folder);
    CAPTURE(variant.own_attention);
    const auto model = open_variant(graphs, variant);
    REQUIRE(model->exact());
    CHECK(model->info().max_length == 600 - model->padding(1));
    Rows expected;
    for (std::size_t past = 0; past < 192; past += 16) {
      for (Row& row : forward(*model, 1, past, all.subspan(past, 16), 16)) {
        expected.push_back(std::move(row));
      }
    }
    const CachedRows cached = model->cached_rows(1, 1, 192);
    const auto same_prefix = [](const std::vector<float>& part, const std::vector<float>& whole) {
      return std::equal(part.begin(), part.end(), whole.begin());
    };
    for (std::size_t rows = 1; rows <= 180; rows += rows < 80 ? 1 : 7) {
      CAPTURE(rows);
      const auto begin = expected.begin() + 11;
      const auto end = begin + static_cast<std::ptrdiff_t>(rows);
      forward(*model, 1, 11, all.subspan(11, 5),
              0);  // what the last one left is not there any more
      REQUIRE(forward(*model, 1, 11, all.subspan(11, rows), rows) == Rows(begin, end));
      REQUIRE(forward(*model, 1, 11, all.subspan(11, rows), 1) == Rows(end - 1, end));
      const CachedRows now = model->cached_rows(1, 1, 11 + static_cast<std::int64_t>(rows));
      REQUIRE(same_prefix(now.keys, cached.keys));
      REQUIRE(same_prefix(now.values, cached.values));
    }
  }
}

TEST_CASE("onnx model: up to the limit rows are padded as far as there is room, or go one by one") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const auto tokens = some_tokens(64);
  const auto all = std::span<const Token>(tokens);
  OnnxModelOptions options;
  options.max_length = 64;
  OnnxModel model(fs::path(graphs) / "int4_block64", options);
  const auto length = static_cast<std::size_t>(model.info().max_length);
  const Rows expected = recompute(model, all.first(length), 0, length);
  for (const std::size_t rows : {1U, 2U, 3U, 8U, 9U, 17U}) {
    forward(model, 1, 0, all.first(length - rows), 0);
    CHECK(forward(model, 1, length - rows, all.subspan(length - rows, rows), rows) ==
          Rows(expected.end() - rows, expected.end()));
  }
  CHECK_THROWS_AS(forward(model, 1, length, all.subspan(length, 1), 1), InvalidArgument);
}

TEST_CASE("onnx model: exact are targets of the gqa form, if they are to be") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  for (const char* folder : {"gqa", "int4_block64", "portable"}) {
    CAPTURE(folder);
    const bool possible = std::string_view(folder) != "portable";
    OnnxModelOptions options;
    CHECK(OnnxModel(fs::path(graphs) / folder, options).exact() == possible);
    options.is_target = false;
    CHECK_FALSE(OnnxModel(fs::path(graphs) / folder, options).exact());
    options = {};
    options.exact = false;
    OnnxModel model(fs::path(graphs) / folder, options);
    CHECK_FALSE(model.exact());
    CHECK(model.padding(1) == 0);
    CHECK(model.info().max_length == 600);
  }
}

TEST_CASE("onnx model: an exact target of the portable form has no integer kernels") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const auto tokens = some_tokens(20);
  const auto rows_of = [&](bool exact, bool is_target) {
    OnnxModelOptions options;
    options.exact = exact;
    options.is_target = is_target;
    OnnxModel model(fs::path(graphs) / "portable_int4", options);
    CHECK_FALSE(model.exact());
    return forward(model, 1, 0, tokens, 20);
  };
  const Rows floats = rows_of(true, true);
  const Rows integers = rows_of(false, true);
  CHECK(integers != floats);
  CHECK(rows_of(true, false) == integers);
}

TEST_CASE("onnx model: tokens and lengths that make no sense are refused") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  OnnxModelOptions options;
  options.max_length = 8;
  OnnxModel model(fs::path(graphs) / "gqa", options);
  CHECK(model.info().max_length == 8);
  CHECK(model.info().token_count() == 60);
  CHECK(model.info().vocab_size == 64);
  const std::vector<Token> bad = {3, 64};
  const std::vector<Token> negative = {-1};
  const std::vector<Token> good(9, 1);
  CHECK_THROWS_AS(forward(model, 1, 0, bad, 1), InvalidArgument);
  CHECK_THROWS_AS(forward(model, 1, 0, negative, 1), InvalidArgument);
  CHECK_THROWS_AS(forward(model, 1, 0, good, 1), InvalidArgument);
  CHECK_THROWS_AS(forward(model, 1, 0, {}, 0), InvalidArgument);
  CHECK_THROWS_AS(forward(model, 1, 2, std::span(good).first(2), 1), InvalidArgument);
  options.max_length = 601;
  CHECK_THROWS_AS(OnnxModel(fs::path(graphs) / "gqa", options), InvalidArgument);
  options.max_length = 3;  // no room for the probe
  CHECK_NOTHROW(OnnxModel(fs::path(graphs) / "gqa", options));
}

TEST_CASE("onnx model: corrupt, truncated and mislabelled folders are refused by name") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const Scratch scratch;
  const std::string graph = read(fs::path(graphs) / "portable" / "model.onnx");
  const std::string contract = read(fs::path(graphs) / "portable" / "pard_rt.json");
  const auto error = [&](const std::string& graph_bytes, const std::string& contract_bytes) {
    scratch.write("model.onnx", graph_bytes);
    scratch.write("pard_rt.json", contract_bytes);
    return message_of<FolderError>([&] { OnnxModel model(scratch.path()); });
  };
  CHECK(error(graph, contract).empty());
  CHECK(mentions(error(graph.substr(0, graph.size() / 2), contract), "cut short"));
  CHECK(mentions(error("garbage", contract), "model.onnx"));
  CHECK(mentions(error("", contract), "model.onnx"));
  CHECK(mentions(error(graph, contract.substr(0, 50)), "JSON"));
  CHECK(mentions(error(graph, replaced(contract, "\"form\": \"portable\"", "\"form\": \"gqa\"")),
                 "'seqlens_k'"));
  CHECK(mentions(error(graph, replaced(contract, "\"head_dim\": 16", "\"head_dim\": 8")),
                 "past.0.key"));
  CHECK(mentions(error(graph, replaced(contract, "\"num_layers\": 2", "\"num_layers\": 3")),
                 "past.2.key"));
  CHECK(mentions(error(graph, replaced(contract, "\"num_layers\": 2", "\"num_layers\": 1")),
                 "past.1.key"));
  CHECK(mentions(error(graph, replaced(contract, "\"vocab_size\": 64", "\"vocab_size\": 65")),
                 "logits"));
  CHECK(mentions(
      error(graph, replaced(contract, "\"kv_dtype\": \"float32\"", "\"kv_dtype\": \"float16\"")),
      "float16"));
  fs::remove(scratch.path() / "model.onnx");
  CHECK(mentions(message_of<FolderError>([&] { OnnxModel model(scratch.path()); }), "model.onnx"));
}

TEST_CASE("onnx model: a folder that requires our attention opens with no other") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const Scratch scratch;
  const fs::path gqa = fs::path(graphs) / "gqa";
  scratch.write("model.onnx", read(gqa / "model.onnx"));
  scratch.write("pard_rt.json",
                replaced(read(gqa / "pard_rt.json"), "{", "{\"requires_own_attention\": true,"));
  CHECK(OnnxModel(scratch.path()).own_attention());
  OnnxModelOptions options;
  options.own_attention = false;
  const std::string error =
      message_of<ModelError>([&] { OnnxModel model(scratch.path(), options); });
  CHECK(mentions(error, "own_attention = false"));
  CHECK(mentions(error, "--form portable"));
}

TEST_CASE("onnx model: missing or truncated weights are refused by name") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const Scratch scratch;
  for (const char* file : {"model.onnx", "pard_rt.json"}) {
    scratch.write(file, read(fs::path(graphs) / "external" / file));
  }
  const auto error = [&] {
    return message_of<FolderError>([&] { OnnxModel model(scratch.path()); });
  };
  CHECK(mentions(error(), "model.onnx.data"));
  const std::string data = read(fs::path(graphs) / "external" / "model.onnx.data");
  scratch.write("model.onnx.data", data.substr(0, data.size() - 1));
  CHECK(mentions(error(), "bytes"));
  scratch.write("model.onnx.data", data);
  CHECK(error().empty());
}

TEST_CASE("onnx model: a dynamically quantized graph is no target") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const fs::path folder = fs::path(graphs) / "dynamic";
  CHECK(mentions(message_of<ModelError>([&] { OnnxModel model(folder); }), "DynamicQuantize"));
  OnnxModelOptions options;
  options.is_target = false;
  OnnxModel draft(folder, options);
  // Were the graph's operators not looked at, the probe would tell.
  CHECK(mentions(message_of<ModelError>([&] { probe_model(draft, {1, 1, 1e-5}); }), "rejected"));
}

TEST_CASE("onnx model: logits are left on a device, a batch's and the probe's too") {
  with_every_variant([](OnnxModel& model, const Variant& variant) {
    int num_rows = 0;
    const auto choose_there = [&] {
      model.choose_on([&] { return std::make_shared<CountingDevice>(num_rows); });
    };
    if (!variant.device_memory) {
      CHECK(mentions(message_of<InvalidArgument>(choose_there), "device_memory"));
      return;
    }
    const auto tokens = some_tokens(12);
    const auto all = std::span<const Token>(tokens);
    const ForwardItem batch[] = {
        {1, 0, all.first(7), 2}, {2, 0, all.subspan(5), 3}, {3, 0, all.first(3), 1}};
    const Rows expected = copy(model.forward(batch));
    CHECK(num_rows == 0);
    choose_there();
    CHECK(copy(model.forward(batch)) == expected);
    CHECK(num_rows == 6);
    model.probe();
    CHECK(num_rows > 6);
  });
}

TEST_CASE("onnx model: a missing provider is refused, with the wheel that has it") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) {
    return;
  }
  const auto library = OrtLibrary::open();
  CHECK(library->has_provider("cpu"));
  for (const char* provider : {"cuda", "migraphx", "rocm"}) {
    OnnxModelOptions options;
    options.session.provider = provider;
    if (!library->has_provider(provider)) {
      CHECK(mentions(
          message_of<RuntimeMissing>([&] { OnnxModel model(fs::path(graphs) / "gqa", options); }),
          std::string("provider '") + provider + "'"));
      CHECK_THROWS_AS(OnnxModel(fs::path(graphs) / "gqa", options, library), ModelError);
    }
  }
  // Libraries side by side: the first that can be used is taken.
  const Scratch scratch;
  scratch.write("libonnxruntime.so.1.999.0", "no library");
  fs::create_symlink(fs::absolute(library->path()), scratch.path() / "libonnxruntime.so.1.2.0");
  CHECK(OrtLibrary::open({scratch.path().string(), {}})->version() == library->version());
}

TEST_CASE("onnx: logits that nobody reads are not computed") {
  const char* graphs = graphs_or_skip();
  if (graphs == nullptr) return;
  const fs::path folder = fs::path(graphs) / "int4";
  FolderContract contract = read_folder(folder);
  check_graph(contract, folder);
  const auto library = OrtLibrary::open();
  SessionOptions options;
  options.own_attention = options.own_matmul = true;
  const Session session(library, folder / contract.graph, options);
  const auto memory = std::make_shared<HostMemory>(*library);
  GraphRunner runner(session, contract, {}, false, memory);
  const std::vector<Token> tokens{3, 1, 4, 1};
  const auto width = static_cast<std::size_t>(contract.vocab_size);
  const auto logits_of = [&](std::int64_t unread) {
    std::vector<float> logits(tokens.size() * width, -7.0F);
    SequenceCache cache = runner.make_cache();
    runner.run(cache, {.tokens = tokens,
                       .num_logits = static_cast<std::int64_t>(tokens.size()),
                       .unread_logits = unread,
                       .logits = reinterpret_cast<std::byte*>(logits.data()),
                       .logits_memory = memory.get()});
    return logits;
  };
  const std::vector<float> all = logits_of(0);
  CHECK(std::count(all.begin(), all.end(), -7.0F) == 0);
  for (const std::int64_t unread : {3, 4}) {
    const std::vector<float> some = logits_of(unread);
    const auto first = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(unread) * width);
    CHECK(std::all_of(some.begin(), some.begin() + first, [](float x) { return x == -7.0F; }));
    CHECK(std::equal(some.begin() + first, some.end(), all.begin() + first));
  }
}

}  // namespace
}  // namespace pard
