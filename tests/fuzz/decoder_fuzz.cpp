#include "decoder_fuzzer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pard::test::fuzz_decoder({data, size});
  return 0;
}
