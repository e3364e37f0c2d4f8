#include "device_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pard {

namespace {

constexpr std::size_t largest_zeros = std::size_t{16} << 20;

// A field of a protobuf message (onnx.proto); all are shorter than 128 bytes.
std::string field(int number, std::string_view bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())}.append(
      bytes);
}

std::string field(int number, int value) {
  return {static_cast<char>(number << 3), static_cast<char>(value)};
}

// to = Identity(from), both uint8 [N].
std::string identity_graph() {
  const std::string shape = field(1, field(2, "N"));
  const std::string type =
      field(2, field(1, field(1, static_cast<int>(ort::ElementType::u8)) + field(2, shape)));
  const std::string node = field(1, "from") + field(2, "to") + field(4, "Identity");
  const std::string graph = field(1, node) + field(2, "copy") + field(11, field(1, "from") + type) +
                            field(12, field(1, "to") + type);
  return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17));
}

SessionOptions copying(SessionOptions options) {
  options.intra_op_threads = 1;
  if (options.provider == "cuda") {  // which otherwise rounds what it takes up to a power of two
    options.provider_options.try_emplace("arena_extend_strategy", "kSameAsRequested");
  }
  return options;
}

const char* memory_name(const std::string& provider) {
  return provider == "cpu" ? "Cpu" : provider == "cuda" ? "Cuda" : "Hip";
}

}  // namespace

DeviceMemory::DeviceMemory(const std::shared_ptr<const OrtLibrary>& library,
                           const SessionOptions& options)
    : library_(library),
      host_(*library),
      info_(describe_memory(*library, memory_name(options.provider), options.device_id())),
      copier_(std::make_shared<Session>(library, GraphBytes{identity_graph()}, copying(options))),
      is_host_(options.provider == "cpu") {
  ort::Allocator* allocator = nullptr;
  library_->check(library_->api().create_allocator(copier_->handle(), info_.get(), &allocator),
                  "allocate memory of the provider '" + options.provider + "'",
                  "Keep keys and values in the host's memory: device_memory = false.");
  // It belongs to the session.
  allocator_ = {allocator, [kept = library, session = copier_](ort::Allocator* a) {
                  kept->api().release_allocator(a);
                }};
}

MemoryBlock DeviceMemory::allocate(std::size_t bytes, bool zeroed) const {
  void* data = nullptr;
  library_->check(library_->api().allocator_alloc(allocator_.get(), bytes, &data),
                  "allocate " + std::to_string(bytes) + " bytes of device memory",
                  "Fewer or shorter sequences need less: see max_length and the batch size.");
  std::shared_ptr<void> owner(data, [library = library_, allocator = allocator_](void* p) {
    library->api().release_status(library->api().allocator_free(allocator.get(), p));
  });
  MemoryBlock block(static_cast<std::byte*>(data), bytes, std::move(owner));
  if (is_host_) {
    std::memset(data, 0xFF, bytes);
  }
  if (zeroed) {
    const std::vector<std::byte> zeros(std::min(bytes, largest_zeros));
    for (std::size_t done = 0; done < bytes; done += zeros.size()) {
      run(*this, block.data() + done, host_, zeros.data(), std::min(zeros.size(), bytes - done));
    }
  }
  return block;
}

void DeviceMemory::copy(std::byte* to, const std::byte* from, std::size_t bytes) const {
  run(*this, to, *this, from, bytes);
}

void DeviceMemory::read(std::byte* to, const std::byte* from, std::size_t bytes) const {
  run(host_, to, *this, from, bytes);
}

void DeviceMemory::run(const Memory& to_memory, std::byte* to, const Memory& from_memory,
                       const std::byte* from, std::size_t bytes) const {
  const std::int64_t shape[] = {static_cast<std::int64_t>(bytes)};
  const auto tensor = [&](const Memory& memory, const std::byte* data) {
    return copier_->tensor(memory, const_cast<std::byte*>(data), ort::ElementType::u8, shape);
  };
  const auto source = tensor(from_memory, from);
  const auto target = tensor(to_memory, to);
  const char* const input = "from";
  const char* const output = "to";
  const ort::Value* const inputs[] = {source.get()};
  ort::Value* const outputs[] = {target.get()};
  copier_->run({&input, 1}, inputs, {&output, 1}, outputs);
}

}  // namespace pard
