// What the decoding loop itself costs: rounds over models that cost nothing.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <vector>

#include "pard/composed_executor.h"
#include "pard/decoder.h"
#include "pard/draft.h"

namespace {

constexpr int vocab_size = 64;
constexpr int num_speculative_tokens = 8;

// Returns the same rows whatever it is fed; they say token 7.
class IdleModel final : public pard::Model {
 public:
  IdleModel() : rows_(vocab_size * 1024, 0.0F) {
    for (std::size_t row = 0; row < 1024; ++row) rows_[row * vocab_size + 7] = 9.0F;
    info_.name = "idle";
    info_.vocab_size = vocab_size;
    info_.max_length = 1 << 20;
  }
  const pard::ModelInfo& info() const override { return info_; }
  pard::LogitsView forward(std::span<const pard::ForwardItem> batch) override {
    std::int64_t num_rows = 0;
    for (const pard::ForwardItem& item : batch) num_rows += item.num_rows;
    return {rows_.data(), pard::DType::f32, num_rows, vocab_size, vocab_size};
  }
  void release(pard::SequenceId) noexcept override {}

 private:
  pard::ModelInfo info_;
  std::vector<float> rows_;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// Microseconds per round; every proposal is accepted, which is the dearest case.
double time_rounds(int batch_size, bool parallel, const pard::SamplingParams& sampling) {
  const auto draft = std::make_shared<IdleModel>();
  std::shared_ptr<pard::Drafter> drafter;
  if (parallel) {
    drafter = std::make_shared<pard::ParallelDrafter>(draft, 0);
  } else {
    drafter = std::make_shared<pard::AutoregressiveDrafter>(draft);
  }
  pard::Decoder decoder(
      std::make_unique<pard::ComposedExecutor>(std::make_shared<IdleModel>(), drafter),
      {.num_speculative_tokens = num_speculative_tokens,
       .max_batch_size = static_cast<std::size_t>(batch_size)});
  for (int i = 0; i < batch_size; ++i) {
    decoder.add({1, 2, 3}, {.sampling = sampling, .max_new_tokens = 1 << 19});
  }
  std::vector<double> times;
  for (int block = 0; block < 60; ++block) {
    const auto start = std::chrono::steady_clock::now();
    for (int round = 0; round < 50; ++round) decoder.step();
    if (block >= 10) times.push_back(seconds_since(start) / 50 * 1e6);
  }
  return median(times);
}

// Microseconds for the choices of one such round of one sequence: K by the draft, K + 1 by the
// target.
double time_choices(const pard::SamplingParams& sampling) {
  const std::vector<float> row = [] {
    std::vector<float> logits(vocab_size, 0.0F);
    logits[7] = 9.0F;
    return logits;
  }();
  std::vector<double> times;
  std::int64_t sum = 0;
  for (int block = 0; block < 60; ++block) {
    const auto start = std::chrono::steady_clock::now();
    for (int round = 0; round < 50; ++round) {
      for (int i = 0; i < 2 * num_speculative_tokens + 1; ++i) {
        sum += pard::choose({row.data(), pard::DType::f32, vocab_size}, sampling, i);
      }
    }
    if (block >= 10) times.push_back(seconds_since(start) / 50 * 1e6);
  }
  return sum < 0 ? 0.0 : median(times);
}

}  // namespace

int main() {
  std::printf("Rounds over models that cost nothing: K = %d, %d logits a row, medians.\n\n",
              num_speculative_tokens, vocab_size);
  std::printf("| drafter | T | batch | us per round | of it choosing |\n|---|---|---|---|---|\n");
  for (const bool parallel : {true, false}) {
    for (const float temperature : {0.0F, 1.0F}) {
      const pard::SamplingParams sampling{.temperature = temperature, .seed = 1};
      const double choices = time_choices(sampling);
      for (const int batch_size : {1, 16}) {
        std::printf("| %s | %.0f | %d | %.2f | %.2f |\n", parallel ? "parallel" : "autoregressive",
                    static_cast<double>(temperature), batch_size,
                    time_rounds(batch_size, parallel, sampling), choices * batch_size);
      }
    }
  }
}
