#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace pard {

ort::Handle<ort::MemoryInfo> describe_memory(const OrtLibrary& library, const char* name,
                                             int device) {
  constexpr int device_allocator = 0;
  constexpr int default_memory = 0;
  ort::MemoryInfo* info = nullptr;
  library.check(
      library.api().create_memory_info(name, device_allocator, device, default_memory, &info),
      "describe memory");
  return {info, library.api().release_memory_info};
}

HostMemory::HostMemory(const OrtLibrary& library) : info_(describe_memory(library, "Cpu", 0)) {}

MemoryBlock HostMemory::allocate(std::size_t bytes, bool /*zeroed*/) const {
  constexpr std::size_t alignment = 64;
  if (bytes > std::numeric_limits<std::size_t>::max() - alignment) {
    throw std::bad_alloc();
  }
  std::shared_ptr<void> owner(std::calloc(bytes + alignment, 1), std::free);
  if (owner == nullptr) {
    throw std::bad_alloc();
  }
  std::size_t space = bytes + alignment;
  void* data = owner.get();
  std::align(alignment, bytes, data, space);
  return {static_cast<std::byte*>(data), bytes, std::move(owner)};
}

void HostMemory::copy(std::byte* to, const std::byte* from, std::size_t bytes) const {
  std::memcpy(to, from, bytes);
}

void HostMemory::read(std::byte* to, const std::byte* from, std::size_t bytes) const {
  std::memcpy(to, from, bytes);
}

}  // namespace pard
