#pragma once

#include <memory>

#include "memory.h"
#include "session.h"

namespace pard {

// Memory of the device a provider runs on. ONNX Runtime's C API has a call that copies tensors from
// version 1.23 on only: here bytes are copied, in every version, by running a graph of one
// Identity, in a session of its own.
//
// On the CPU provider, whose memory is the host's, it is there for tests, and comes full of NaN.
class DeviceMemory final : public Memory {
 public:
  DeviceMemory(const std::shared_ptr<const OrtLibrary>& library, const SessionOptions& options);

  const ort::MemoryInfo* info() const override { return info_.get(); }
  MemoryBlock allocate(std::size_t bytes, bool zeroed) const override;
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) const override;
  void read(std::byte* to, const std::byte* from, std::size_t bytes) const override;

 private:
  void run(const Memory& to_memory, std::byte* to, const Memory& from_memory, const std::byte* from,
           std::size_t bytes) const;

  std::shared_ptr<const OrtLibrary> library_;
  HostMemory host_;
  ort::Handle<ort::MemoryInfo> info_;
  std::shared_ptr<const Session> copier_;
  std::shared_ptr<ort::Allocator> allocator_;
  bool is_host_ = false;
};

}  // namespace pard
