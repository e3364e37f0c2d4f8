// What one choose() costs on a vocabulary of 152k tokens: medians on one core.

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <random>
#include <vector>

#include "pard/choose.h"

namespace {

constexpr std::size_t vocab_size = 151936;
constexpr int num_repetitions = 400;
constexpr int num_warm_ups = 50;

volatile std::int64_t sink;

template <class Body>
double median_us(Body body) {
  std::vector<double> times;
  for (int i = 0; i < num_warm_ups + num_repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    sink = body(i);
    const std::chrono::duration<double, std::micro> elapsed =
        std::chrono::steady_clock::now() - start;
    if (i >= num_warm_ups) times.push_back(elapsed.count());
  }
  std::nth_element(times.begin(), times.begin() + num_repetitions / 2, times.end());
  return times[num_repetitions / 2];
}

std::vector<float> normal_row(float deviation, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> row(vocab_size);
  for (float& logit : row) logit = normal(generator);
  return row;
}

// A confident model: a handful of tokens far above the rest.
std::vector<float> model_like_row() {
  std::vector<float> row = normal_row(2.0F, 2);
  for (std::size_t i = 0; i < 12; ++i)
    row[i * 12007 + 5] = 15.0F + 5.0F * static_cast<float>(i) / 11;
  return row;
}

double choose_us(const pard::LogitsRow& row, const pard::SamplingParams& params) {
  return median_us([&](int i) { return pard::choose(row, params, i); });
}

// The least any argmax does: read every element once. Four sums at a time, or their chain would set
// the pace.
double read_us(const std::vector<float>& row) {
  static_assert(vocab_size % 4 == 0);
  constexpr std::size_t quarter = vocab_size / 4;
  return median_us([&](int) {
    std::uint32_t sums[4] = {};
    for (std::size_t i = 0; i < quarter; ++i) {
      for (std::size_t j = 0; j < 4; ++j) {
        sums[j] += std::bit_cast<std::uint32_t>(row[j * quarter + i]);
      }
    }
    return std::int64_t{sums[0]} + sums[1] + sums[2] + sums[3];
  });
}

}  // namespace

int main() {
  const std::vector<float> flat = normal_row(1.0F, 1), peaked = model_like_row();
  std::vector<std::uint16_t> half;
  for (float logit : peaked) {
    half.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(logit) >> 16));
  }
  const auto size = static_cast<std::int64_t>(vocab_size);
  const pard::LogitsRow flat_row{flat.data(), pard::DType::f32, size};
  const pard::LogitsRow peaked_row{peaked.data(), pard::DType::f32, size};
  const pard::LogitsRow half_row{half.data(), pard::DType::bf16, size};

  const double read = read_us(peaked);
  const double greedy = choose_us(peaked_row, {});
  const double gigabytes = static_cast<double>(vocab_size * sizeof(float)) * 1e-9;
  std::printf("%zu tokens, medians of %d, microseconds\n\n", vocab_size, num_repetitions);
  std::printf("read the f32 row once      %8.1f  (%.0f GB/s)\n", read, gigabytes / (read * 1e-6));
  std::printf("temperature 0, f32         %8.1f  (%.0f GB/s, %.2f times reading)\n", greedy,
              gigabytes / (greedy * 1e-6), greedy / read);
  std::printf("temperature 0, bf16        %8.1f\n\n", choose_us(half_row, {}));

  struct Setting {
    const char* name;
    pard::SamplingParams params;
  };
  const Setting settings[] = {
      {"temperature 1", {.temperature = 1.0F}},
      {"temperature 0.6", {.temperature = 0.6F}},
      {"top_k 50", {.temperature = 1.0F, .top_k = 50}},
      {"top_k 5000", {.temperature = 1.0F, .top_k = 5000}},
      {"top_p 0.9", {.temperature = 1.0F, .top_p = 0.9F}},
      {"min_p 0.05", {.temperature = 1.0F, .min_p = 0.05F}},
      {"top_k 50, top_p 0.9, min_p 0.05",
       {.temperature = 1.0F, .top_k = 50, .top_p = 0.9F, .min_p = 0.05F}},
  };
  std::printf("%-34s %10s %10s %10s\n", "", "flat f32", "peaked f32", "peaked bf16");
  for (const Setting& setting : settings) {
    std::printf("%-34s %10.1f %10.1f %10.1f\n", setting.name, choose_us(flat_row, setting.params),
                choose_us(peaked_row, setting.params), choose_us(half_row, setting.params));
  }
  const double log_probability_us = median_us(
      [&](int i) { return static_cast<std::int64_t>(pard::log_probability(flat_row, i)); });
  std::printf("%-34s %10.1f\n", "log_probability", log_probability_us);
}
