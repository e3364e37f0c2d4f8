#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "ort_api.h"

namespace pard {

// Bytes of a Memory; copies share them.
class MemoryBlock {
 public:
  MemoryBlock() = default;
  MemoryBlock(std::byte* data, std::size_t size, std::shared_ptr<void> owner)
      : data_(data), size_(size), owner_(std::move(owner)) {}

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::shared_ptr<void> owner_;
};

// Where keys and values lie: in the host's memory or in a device's, which the host cannot address.
class Memory {
 public:
  Memory() = default;
  virtual ~Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // What ONNX Runtime calls it.
  virtual const ort::MemoryInfo* info() const = 0;

  // Not `zeroed`, it holds anything, NaN included.
  virtual MemoryBlock allocate(std::size_t bytes, bool zeroed) const = 0;

  // From this memory to this memory; the two do not overlap.
  virtual void copy(std::byte* to, const std::byte* from, std::size_t bytes) const = 0;

  // From this memory to the host's.
  virtual void read(std::byte* to, const std::byte* from, std::size_t bytes) const = 0;
};

class HostMemory final : public Memory {
 public:
  explicit HostMemory(const OrtLibrary& library);

  const ort::MemoryInfo* info() const override { return info_.get(); }

  // Always zeroed: fresh pages of calloc are so without being touched, and cost nothing unused.
  MemoryBlock allocate(std::size_t bytes, bool zeroed) const override;
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) const override;
  void read(std::byte* to, const std::byte* from, std::size_t bytes) const override;

 private:
  ort::Handle<ort::MemoryInfo> info_;
};

ort::Handle<ort::MemoryInfo> describe_memory(const OrtLibrary& library, const char* name,
                                             int device);

}  // namespace pard
