#include "kernels.h"
//
#include <cstddef>
#include <cstring>

#include "kernel_set.h"

namespace pard::gpu {

namespace {

thread_local int x = 0, y = 0;

class HostKernels final : public KernelSet {
 public:
  void build_input(const DraftInputArgs& args, int num_slots, void*) const override {
    for (x = 0; x < num_slots; ++x) gpu::build_input(args);
  }

  void choose_and_verify(const ChooseArgs& args, int num_slots, void*) const override {
    Scratch scratch;
    for (y = 0; y < num_slots; ++y) {
      for (x = 0; x < args.num_rows; ++x) gpu::choose_and_verify(args, scratch);
    }
  }

  std::shared_ptr<void> allocate(std::size_t bytes) const override {
    return std::make_unique<std::byte[]>(bytes);
  }
  void write(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  void read(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

}  // namespace

inline int lane() { return 0; }
inline int block_x() { return x; }
inline int block_y() { return y; }
inline void barrier() {}

std::unique_ptr<KernelSet> host_kernels() { return std::make_unique<HostKernels>(); }

}  // namespace pard::gpu
