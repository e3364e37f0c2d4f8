#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "ort_api.h"

namespace pard {

constexpr std::int64_t absent = -1;  // of a shape, behind its last dimension
using OpShape = std::array<std::int64_t, 4>;

struct OpTensor {
  void* data = nullptr;  // null: not given
  ort::ElementType type{};
  OpShape shape{absent, absent, absent, absent};

  float* floats() const { return static_cast<float*>(data); }

  std::size_t rank() const {
    return static_cast<std::size_t>(std::find(shape.begin(), shape.end(), absent) - shape.begin());
  }
  std::int64_t count() const {
    std::int64_t product = 1;
    for (std::size_t i = 0; i < rank(); ++i) product *= shape[i];
    return product;
  }
};

inline void check_status(const ort::Api& api, ort::Status* status) {
  if (status == nullptr) return;
  const std::string message = api.get_error_message(status);
  api.release_status(status);
  throw std::runtime_error(message);
}

inline OpTensor read_tensor(const ort::Api& api, const ort::Value* value) {
  OpTensor tensor;
  if (value == nullptr) return tensor;
  ort::TensorInfo* raw = nullptr;
  check_status(api, api.get_tensor_info(value, &raw));
  const ort::Handle<ort::TensorInfo> info(raw, api.release_tensor_info);
  std::size_t rank = 0;
  check_status(api, api.get_dimensions_count(raw, &rank));
  if (rank > tensor.shape.size()) {
    throw std::runtime_error("an input has more dimensions than it may");
  }
  check_status(api, api.get_dimensions(raw, tensor.shape.data(), rank));
  check_status(api, api.get_element_type(raw, &tensor.type));
  check_status(api, api.get_tensor_data(const_cast<ort::Value*>(value), &tensor.data));
  return tensor;
}

// One run of an operator of ours.
class OpRun {
 public:
  OpRun(const ort::Api& api, ort::KernelContext* context) : api_(api), context_(context) {}

  OpTensor input(std::size_t index) const {
    const ort::Value* value = nullptr;
    check_status(api_, api_.get_kernel_input(context_, index, &value));
    return read_tensor(api_, value);
  }

  template <class Shape = std::initializer_list<std::int64_t>>
  float* output(std::size_t index, const Shape& shape) const {
    ort::Value* value = nullptr;
    check_status(api_,
                 api_.get_kernel_output(context_, index, std::data(shape), shape.size(), &value));
    void* data = nullptr;
    check_status(api_, api_.get_tensor_data(value, &data));
    return static_cast<float*>(data);
  }

  static void require(bool holds, const char* otherwise) {
    if (!holds) throw std::runtime_error(otherwise);
  }

  // Calls task(0) .. task(count - 1), on several threads where there are and `parallel`.
  template <class Task>
  void for_each(std::size_t count, bool parallel, const Task& task) const {
    if (!parallel) {
      for (std::size_t i = 0; i < count; ++i) task(i);
      return;
    }
    const auto call = [](void* data, std::size_t i) { (*static_cast<const Task*>(data))(i); };
    check_status(api_, api_.parallel_for(context_, call, count, 0, const_cast<Task*>(&task)));
  }

 private:
  const ort::Api& api_;
  ort::KernelContext* context_;
};

// An operator of ours, for one library; `api` outlives it.
struct OwnOp : ort::CustomOp {
  explicit OwnOp(const ort::Api& its_api) : ort::CustomOp{}, api(its_api) {
    version = OrtLibrary::api_version;
    get_provider = [](const CustomOp*) -> const char* { return nullptr; };
    get_input_memory = [](const CustomOp*, std::size_t) { return 0; };
    get_output_type = [](const CustomOp*, std::size_t) { return ort::ElementType::f32; };
    get_output_presence = [](const CustomOp*, std::size_t) { return Presence::required; };
    get_start_version = [](const CustomOp*) { return 1; };
  }

  const ort::Api& api;
  mutable std::exception_ptr failure;  // why the latest kernel was not made
};

// What the C API calls must not throw.
template <class Work>
ort::Status* reported(const ort::Api& api, const Work& work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return api.create_status(ort::ErrorCode::runtime_exception, error.what());
  }
}

// `make(op, info)` returns a kernel, on the heap, whose compute(context) runs it.
template <class Op, auto make>
void make_kernels(Op& op) {
  using Kernel = typename decltype(make(op, nullptr))::element_type;
  op.create_kernel_v2 = [](const ort::CustomOp* base, const void*, const ort::KernelInfo* info,
                           void** kernel) {
    const auto& own = static_cast<const Op&>(*base);
    return reported(own.api, [&] {
      try {
        *kernel = make(own, info).release();
      } catch (...) {
        own.failure = std::current_exception();
        throw;
      }
    });
  };
  op.compute_v2 = [](void* kernel, ort::KernelContext* context) {
    const Kernel& own = *static_cast<Kernel*>(kernel);
    return reported(own.api, [&] { own.compute(context); });
  };
  op.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
}

}  // namespace pard
