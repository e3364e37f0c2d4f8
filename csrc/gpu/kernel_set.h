#pragma once

// The kernels of a round, where they run: on a GPU, from a code object, or on the host.

#include <memory>
#include <string>
#include <vector>

#include "round.h"

namespace pard::gpu {

class KernelSet {
 public:
  virtual ~KernelSet() = default;

  // Queue behind what `stream` (the driver's handle; unused on the host) holds. Throw ModelError
  // where the driver refuses.
  virtual void build_input(const DraftInputArgs& args, int num_slots, void* stream) const = 0;
  virtual void choose_and_verify(const ChooseArgs& args, int num_slots, void* stream) const = 0;

  virtual std::string code_object() const { return {}; }  // its file's name; empty on the host

  // The device's memory. Copies are done when the call returns, and come after what was queued on
  // the null stream. Throw ModelError where the driver refuses.
  virtual std::shared_ptr<void> allocate(std::size_t bytes) const = 0;
  virtual void write(void* to, const void* from, std::size_t bytes) const = 0;
  virtual void read(void* to, const void* from, std::size_t bytes) const = 0;
};

// The same source with one lane per block, block after block.
std::unique_ptr<KernelSet> host_kernels();

enum class Driver : std::uint8_t { cuda, hip };

// Loads the first of the code objects that the driver takes for its current device. Throws
// RuntimeMissing for no driver that dlopen finds, an old one, or none that it takes.
std::unique_ptr<KernelSet> load_kernels(Driver driver,
                                        const std::vector<std::string>& code_objects);

}  // namespace pard::gpu
