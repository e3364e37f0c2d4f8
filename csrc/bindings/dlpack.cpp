#include "dlpack.h"

#include <cstdint>
#include <optional>
#include <string>

#include "pard/error.h"

namespace pard::python {

namespace {

// DLPack's structures as its specification lays them out (the unversioned capsule, "dltensor").
struct DLTensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t ndim;
  struct {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: compact
  std::uint64_t byte_offset;
};

// The capsule "dltensor_versioned", of DLPack 1.0; only such a one can say that it is read-only.
struct DLManagedTensorVersioned {
  std::uint32_t major;
  std::uint32_t minor;
  void* manager_context;
  void (*deleter)(DLManagedTensorVersioned*);
  std::uint64_t flags;
  DLTensor tensor;
};

enum DeviceType : std::int32_t { device_cpu = 1, device_cuda_host = 3, device_rocm_host = 11 };
enum TypeCode : std::uint8_t { code_float = 2, code_bfloat = 4 };

// Frameworks older than DLPack 1.0 do not know the argument.
py::capsule export_tensor(const py::object& tensor) {
  const py::object dlpack = tensor.attr("__dlpack__");
  try {
    return dlpack(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    return dlpack();
  }
}

const DLTensor& tensor_in(const py::capsule& capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    return static_cast<const DLManagedTensorVersioned*>(
               PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"))
        ->tensor;
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    return *static_cast<const DLTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  }
  throw ModelError({"Logits cannot be read", "a capsule of DLPack, not yet consumed",
                    "a capsule named " + std::string(capsule.name() ? capsule.name() : "nothing"),
                    "Return the tensor itself."});
}

std::optional<DType> dtype_of(const DLTensor& tensor) {
  if (tensor.dtype.lanes != 1) return std::nullopt;
  if (tensor.dtype.code == code_float && tensor.dtype.bits == 32) return DType::f32;
  if (tensor.dtype.code == code_float && tensor.dtype.bits == 16) return DType::f16;
  if (tensor.dtype.code == code_bfloat && tensor.dtype.bits == 16) return DType::bf16;
  return std::nullopt;
}

void check_device(const DLTensor& tensor) {
  switch (tensor.device_type) {
    case device_cpu:
    case device_cuda_host:
    case device_rocm_host:
      return;
    default:
      throw ModelError(
          {"Logits cannot be read", "a tensor in the host's memory",
           "one on a device (DLPack device type " + std::to_string(tensor.device_type) + ")",
           "Return logits.cpu()."});
  }
}

}  // namespace

BorrowedLogits borrow_logits(const py::object& tensor) {
  if (!py::hasattr(tensor, "__dlpack__")) {
    throw ModelError({"Logits cannot be read", "a tensor with __dlpack__ (NumPy, PyTorch, ...)",
                      py::str(py::type::of(tensor)), "Return the tensor itself."});
  }
  const py::capsule capsule = export_tensor(tensor);
  const DLTensor& dl = tensor_in(capsule);
  check_device(dl);
  const std::optional<DType> dtype = dtype_of(dl);
  if (!dtype) {
    throw ModelError({"Logits have a type that cannot be chosen from",
                      "float32, float16 or bfloat16",
                      "DLPack type code " + std::to_string(dl.dtype.code) + " of " +
                          std::to_string(dl.dtype.bits) + " bits",
                      "Convert them to float32."});
  }
  if (dl.ndim != 1 && dl.ndim != 2) {
    throw ModelError({"Logits have the wrong number of dimensions", "[rows, vocabulary]",
                      std::to_string(dl.ndim) + " dimensions", "Reshape them."});
  }
  const std::int64_t num_rows = dl.ndim == 2 ? dl.shape[0] : 1;
  const std::int64_t vocab_size = dl.shape[dl.ndim - 1];
  std::int64_t row_stride = vocab_size;
  if (dl.strides != nullptr) {
    if (dl.strides[dl.ndim - 1] != 1 && vocab_size > 1) {
      throw ModelError({"A row of logits is not contiguous", "stride 1",
                        "stride " + std::to_string(dl.strides[dl.ndim - 1]),
                        "Make the tensor contiguous."});
    }
    if (dl.ndim == 2) row_stride = dl.strides[0];
  }
  const char* data = static_cast<const char*>(dl.data) + dl.byte_offset;
  return {capsule, {data, *dtype, num_rows, vocab_size, row_stride}};
}

}  // namespace pard::python
