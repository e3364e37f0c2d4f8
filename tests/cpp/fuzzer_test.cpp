// The fuzzer's harness over random scripts, for machines without libFuzzer (see tests/fuzz).
#include <doctest/doctest.h>

#include <random>
#include <vector>

#include "../fuzz/decoder_fuzzer.h"

namespace pard {
namespace {

TEST_CASE("a decoder keeps its promises under random scripts") {
  std::mt19937 random(20);
  for (int run = 0; run < 1500; ++run) {
    std::vector<std::uint8_t> script(random() % 400);
    for (auto& byte : script) byte = static_cast<std::uint8_t>(random());
    CHECK_NOTHROW(test::fuzz_decoder(script));
  }
}

}  // namespace
}  // namespace pard
