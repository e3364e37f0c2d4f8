#pragma once

// The kernels of a round, where they run: on a GPU, from a code object, or on the host.

#include <memory>
#include <string>

#include "round.h"

namespace pard::gpu {

class KernelSet {
 public:
  virtual ~KernelSet() = default;

  // Queue behind what `stream` (the driver's handle; unused on the host) holds. Throw ModelError
  // where the driver refuses.
  virtual void build_input(const DraftInputArgs& args, int num_slots, void* stream) const = 0;
  virtual void choose_and_verify(const ChooseArgs& args, int num_slots, void* stream) const = 0;
};

// The same source with one lane per block, block after block.
std::unique_ptr<KernelSet> host_kernels();

enum class Driver : std::uint8_t { cuda, hip };

// Loads a code object into the current context of a driver that dlopen finds. Throws RuntimeMissing
// for no driver, an old one, or a code object it does not take.
std::unique_ptr<KernelSet> load_kernels(Driver driver, const std::string& code_object);

}  // namespace pard::gpu
