#pragma once

#include <cstdint>

namespace pard {

// A token id, and a row of a model's embedding.
using Token = std::int32_t;

// Names one sequence in every cache. Never reused within a process, so a stale id cannot reach
// another sequence's rows.
using SequenceId = std::uint64_t;

}  // namespace pard
