// Choosing where the logits lie, by the kernels' source on the host. A program of its own: the
// other tests run that source with lanes of their own.

#include "kernel_choosing.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "pard/choose.h"
#include "pard/error.h"

namespace {

using pard::DType;
using pard::LogitsView;
using pard::RowRequest;
using pard::SamplingParams;
using pard::Token;

constexpr std::int64_t vocab_size = 37;

// The host's kernels; wrong ones choose another token for the first row.
class Kernels final : public pard::gpu::KernelSet {
 public:
  explicit Kernels(bool wrong) : wrong_(wrong) {}

  void build_input(const pard::gpu::DraftInputArgs&, int, void*) const override {}
  void choose_and_verify(const pard::gpu::ChooseArgs& args, int slots, void* s) const override {
    host_->choose_and_verify(args, slots, s);
    if (wrong_) args.chosen[0] ^= 1;
  }
  std::shared_ptr<void> allocate(std::size_t bytes) const override {
    return host_->allocate(bytes);
  }
  void write(void* to, const void* from, std::size_t bytes) const override {
    host_->write(to, from, bytes);
  }
  void read(void* to, const void* from, std::size_t bytes) const override {
    host_->read(to, from, bytes);
  }

 private:
  std::unique_ptr<pard::gpu::KernelSet> host_ = pard::gpu::host_kernels();
  bool wrong_;
};

TEST_CASE("rows are chosen from as on the host, in calls of any size; bad ones yield nothing") {
  const pard::gpu::KernelChoosing device(pard::gpu::host_kernels());
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity()};
  for (const std::size_t count : {1U, 3U, 40U, 2U}) {
    std::vector<float> logits(count * vocab_size);
    for (std::size_t i = 0; i < logits.size(); ++i) {
      logits[i] = std::sin(static_cast<float>(i * i));
    }
    std::vector<SamplingParams> sampling(count);
    std::vector<RowRequest> requests(count);
    for (std::size_t i = 0; i < count; ++i) {
      sampling[i].temperature = i % 2 == 0 ? 0.0F : 0.9F;
      sampling[i].seed = i;
      requests[i] = {&sampling[i], static_cast<std::int64_t>(7 * i)};
      if (i % 5 == 2) logits[i * vocab_size + i % vocab_size] = bad[i % 2];
    }
    std::vector<std::optional<Token>> tokens(count);
    device.choose({logits.data(), DType::f32, static_cast<std::int64_t>(count), vocab_size - 4,
                   vocab_size, &device},
                  requests, tokens);
    const LogitsView on_host{logits.data(), DType::f32, static_cast<std::int64_t>(count),
                             vocab_size - 4, vocab_size};
    for (std::size_t i = 0; i < count; ++i) {
      CAPTURE(i);
      std::optional<Token> expected;
      try {
        expected = pard::choose(on_host.row(static_cast<std::int64_t>(i)), sampling[i],
                                requests[i].position);
      } catch (const pard::LogitsError&) {
      }
      CHECK(tokens[i] == expected);
      CHECK(expected.has_value() == (i % 5 != 2 || i % vocab_size >= vocab_size - 4));
    }
  }
}

TEST_CASE("kernels that choose otherwise are refused") {
  CHECK_NOTHROW(pard::gpu::KernelChoosing(std::make_unique<Kernels>(false)));
  CHECK_THROWS_AS(pard::gpu::KernelChoosing(std::make_unique<Kernels>(true)), pard::ModelError);
}

}  // namespace
