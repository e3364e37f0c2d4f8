#include "pard/cached_model.h"

#include <doctest/doctest.h>

#include <memory>
#include <vector>

#include "fake_model.h"
#include "pard/error.h"

namespace pard {
namespace {

using test::FakeLanguage;
using test::FakeModel;

// A Model that returns whatever it is told to.
class Canned final : public Model {
 public:
  const ModelInfo& info() const override { return model_info; }
  LogitsView forward(std::span<const ForwardItem>) override { return logits; }
  void release(SequenceId) noexcept override {}

  ModelInfo model_info{.name = "canned", .vocab_size = 4, .max_length = 8};
  LogitsView logits;
};

TEST_CASE("forward alone keeps nothing, keep says what is good") {
  auto fake = std::make_shared<FakeModel>(FakeLanguage(16));
  CachedModel model(fake);
  const std::vector<Token> tokens = {1, 2, 3};
  const ForwardItem item{7, 0, tokens, 1};
  model.forward({&item, 1});
  CHECK(model.cached_length(7) == 0);
  model.keep(7, 2);
  CHECK(model.cached_length(7) == 2);
  CHECK(fake->cache_equals_fresh_prefill(7, tokens, 2));
  model.release(7);
  CHECK(model.cached_length(7) == 0);
  CHECK(fake->num_caches() == 0);
}

TEST_CASE("a forward that fails leaves cached lengths as they were, and its cause inside") {
  auto fake = std::make_shared<FakeModel>(FakeLanguage(16));
  CachedModel model(fake);
  const std::vector<Token> tokens = {1, 2, 3};
  const ForwardItem first{7, 0, tokens, 0};
  model.forward({&first, 1});
  model.keep(7, 3);
  fake->forwards_until_failure = 0;
  const ForwardItem second{7, 3, tokens, 1};
  try {
    model.forward({&second, 1});
    FAIL("did not throw");
  } catch (const ModelError& error) {
    CHECK(error.detail().actual == "the device fell off the bus");
    CHECK_THROWS_AS(std::rethrow_if_nested(error), std::runtime_error);
  }
  CHECK(model.cached_length(7) == 3);
}

TEST_CASE("logits of another shape are refused") {
  auto canned = std::make_shared<Canned>();
  const std::vector<float> data(8);
  const std::vector<Token> tokens = {1};
  const ForwardItem item{1, 0, tokens, 1};
  CachedModel model(canned);
  canned->logits = {data.data(), DType::f32, 2, 4, 4};
  CHECK_THROWS_AS(model.forward({&item, 1}), ModelError);
  canned->logits = {data.data(), DType::f32, 1, 3, 3};
  CHECK_THROWS_AS(model.forward({&item, 1}), ModelError);
  canned->logits = {nullptr, DType::f32, 1, 4, 4};
  CHECK_THROWS_AS(model.forward({&item, 1}), ModelError);
  canned->logits = {data.data(), DType::f32, 1, 4, 4};
  CHECK_NOTHROW(model.forward({&item, 1}));
}

TEST_CASE("a model whose info makes no sense is refused, and so is none") {
  CHECK_THROWS_AS(CachedModel(nullptr), InvalidArgument);
  auto canned = std::make_shared<Canned>();
  canned->model_info.max_length = 0;
  CHECK_THROWS_AS(CachedModel{canned}, ModelError);
  canned->model_info = {.name = "canned", .vocab_size = 0, .max_length = 8};
  CHECK_THROWS_AS(CachedModel{canned}, ModelError);
  canned->model_info = {.name = "canned", .vocab_size = 4, .max_length = 8, .num_tokens = 5};
  CHECK_THROWS_AS(CachedModel{canned}, ModelError);
}

TEST_CASE("a forward that fails voids the rows it was to write") {
  auto fake = std::make_shared<FakeModel>(FakeLanguage(16));
  CachedModel model(fake);
  const std::vector<Token> tokens = {1, 2, 3};
  const ForwardItem first{7, 0, tokens, 0};
  model.forward({&first, 1});
  model.keep(7, 3);
  fake->forwards_until_failure = 0;
  const ForwardItem rewrite{7, 1, tokens, 1};  // rows 1.. are being rewritten when it fails
  CHECK_THROWS_AS(model.forward({&rewrite, 1}), ModelError);
  CHECK(model.cached_length(7) == 1);
  model.keep_at_most(7, 3);
  CHECK(model.cached_length(7) == 1);
}

TEST_CASE("a model that knows no tokens is refused") {
  const auto model = std::make_shared<FakeModel>(FakeLanguage(0), FakeModel::Options{.padding = 4});
  CHECK_THROWS_AS(CachedModel{model}, ModelError);
}

}  // namespace
}  // namespace pard
