#pragma once

#include <cstdint>
#include <span>

namespace pard::test {

// Reads `script` as a list of things that happen to a Decoder: sequences join, are cancelled, reach
// limits; K changes; models and observers throw; rows go bad. After every round each cache must
// equal a fresh prefill; at the end each sequence's ids must be plain decoding's. Aborts where they
// are not.
void fuzz_decoder(std::span<const std::uint8_t> script);

}  // namespace pard::test
