// Products of any shape: rows alone and in company, by the portable kernel and by all others.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "../cpp/random_weights.h"

// A byte says something of the shape each; what is left seeds the numbers.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace pard;
  if (size < 9) return 0;
  const int bits = data[0] % 2 == 0 ? 4 : 8;
  const int block = 16 << data[1] % 4;
  const auto kind = static_cast<test::Kind>(data[2] % 3);
  const auto type = static_cast<ScaleType>(data[3] % 3);
  const int columns = 1 + data[4] % 40;
  const int depth = 1 + data[5] + 256 * (data[6] % 3);
  const int rows = 1 + data[7] % 33;
  std::uint32_t seed = 0;
  for (std::size_t i = 8; i < size; ++i) seed = seed * 31 + data[i];
  test::Weights::generator().seed(seed);

  const test::Weights weights(columns, depth, bits, block, kind, type);
  const std::vector<float> input = test::draw_rows(rows, depth);
  std::vector<float> expected;
  for (const MatmulKernel& kernel : all_matmul_kernels()) {
    const PackedWeights packed(weights.packed, kernel, 1 + data[8] % 4);
    const std::vector<float> alone = test::product(kernel, packed.matrix(), input, 1);
    const std::vector<float> together =
        test::product(kernel, packed.matrix(), input, kernel.most_rows);
    if (expected.empty()) expected = alone;
    if (!test::same_bits(alone, expected) || !test::same_bits(together, expected)) std::abort();
  }
  return 0;
}
