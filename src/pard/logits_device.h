#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "choose.h"
#include "logits.h"
#include "types.h"

namespace pard {

// How the token of a row is to be chosen: see choose().
struct RowRequest {
  const SamplingParams* sampling = nullptr;  // in range
  std::int64_t position = 0;
};

// A device in whose memory logits lie, where the host cannot address them. Calls come from one
// thread at a time.
class LogitsDevice {
 public:
  virtual ~LogitsDevice() = default;

  // choose() of every row by its request, there; none where a row allows no choice.
  virtual void choose(const LogitsView& rows, std::span<const RowRequest> requests,
                      std::span<std::optional<Token>> tokens) const = 0;

  // Copies bytes of a row to the host's memory.
  virtual void read(void* to, const void* from, std::size_t bytes) const = 0;
};

}  // namespace pard
