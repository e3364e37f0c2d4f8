#include "gpu.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "pard/error.h"

namespace pard::python {

namespace {

using gpu::ChooseArgs;
using gpu::DraftInputArgs;
using gpu::KernelSet;

// Addresses come as integers, as torch's data_ptr() gives them.
template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::int32_t dtype_of(const std::string& name) {
  if (name == "float32") return static_cast<std::int32_t>(DType::f32);
  if (name == "float16") return static_cast<std::int32_t>(DType::f16);
  if (name == "bfloat16") return static_cast<std::int32_t>(DType::bf16);
  throw InvalidArgument({"Logits of this type cannot be chosen from",
                         "float32, float16 or bfloat16", name, "Convert the model."});
}

}  // namespace

std::unique_ptr<KernelSet> open_kernels(const std::string& driver,
                                        const std::vector<std::string>& code_objects) {
  if (driver == "host") return gpu::host_kernels();
  if (driver == "cuda") return gpu::load_kernels(gpu::Driver::cuda, code_objects);
  if (driver == "hip") return gpu::load_kernels(gpu::Driver::hip, code_objects);
  throw InvalidArgument({"There is no such driver", "host, cuda or hip", "'" + driver + "'",
                         "Pass one of these names."});
}

void register_gpu(py::module_& module) {
  py::classh<KernelSet>(module, "KernelSet")
      .def(py::init(&open_kernels), py::arg("driver"),
           py::arg("code_objects") = std::vector<std::string>{})
      .def_property_readonly("code_object", &KernelSet::code_object)
      .def(
          "build_input",
          [](const KernelSet& self, std::uintptr_t tokens, std::uintptr_t lengths,
             std::uintptr_t sampling, std::int64_t capacity, std::uintptr_t draft_tokens,
             std::uintptr_t draft_positions, std::uintptr_t draft_rows,
             std::uintptr_t target_tokens, std::uintptr_t target_positions, Token mask_token,
             Token draft_vocab, int num_proposals, int num_slots, std::uintptr_t stream) {
            const DraftInputArgs args{at<Token>(tokens),
                                      at<std::int64_t>(lengths),
                                      at<gpu::SlotSampling>(sampling),
                                      capacity,
                                      at<std::int64_t>(draft_tokens),
                                      at<std::int64_t>(draft_positions),
                                      at<std::int64_t>(draft_rows),
                                      at<std::int64_t>(target_tokens),
                                      at<std::int64_t>(target_positions),
                                      mask_token,
                                      mask_token,
                                      draft_vocab,
                                      num_proposals};
            self.build_input(args, num_slots, at<void>(stream));
          },
          py::kw_only(), py::arg("tokens"), py::arg("lengths"), py::arg("sampling"),
          py::arg("capacity"), py::arg("draft_tokens"), py::arg("draft_positions"),
          py::arg("draft_rows"), py::arg("target_tokens"), py::arg("target_positions"),
          py::arg("mask_token"), py::arg("draft_vocab"), py::arg("num_proposals"),
          py::arg("num_slots"), py::arg("stream") = 0)
      .def(
          "choose_and_verify",
          [](const KernelSet& self, std::uintptr_t logits, const std::string& dtype,
             std::int64_t row_stride, Token vocab_size, int num_rows, bool is_target,
             std::uintptr_t tokens, std::uintptr_t lengths, std::uintptr_t sampling,
             std::int64_t capacity, std::uintptr_t target_tokens, std::uintptr_t chosen,
             std::uintptr_t bad_draft, std::uintptr_t arrived, std::uintptr_t records,
             int num_slots, std::uintptr_t stream) {
            const ChooseArgs args{at<void>(logits),
                                  row_stride,
                                  vocab_size,
                                  dtype_of(dtype),
                                  num_rows,
                                  is_target,
                                  at<Token>(tokens),
                                  at<std::int64_t>(lengths),
                                  capacity,
                                  at<gpu::SlotSampling>(sampling),
                                  at<std::int64_t>(target_tokens),
                                  at<std::int32_t>(chosen),
                                  at<std::int32_t>(bad_draft),
                                  at<std::uint32_t>(arrived),
                                  at<gpu::SlotRecord>(records)};
            self.choose_and_verify(args, num_slots, at<void>(stream));
          },
          py::kw_only(), py::arg("logits"), py::arg("dtype"), py::arg("row_stride"),
          py::arg("vocab_size"), py::arg("num_rows"), py::arg("is_target"), py::arg("tokens"),
          py::arg("lengths"), py::arg("sampling"), py::arg("capacity"), py::arg("target_tokens"),
          py::arg("chosen"), py::arg("bad_draft"), py::arg("arrived"), py::arg("records"),
          py::arg("num_slots"), py::arg("stream") = 0);

  module.attr("SLOT_RECORD_INTS") = sizeof(gpu::SlotRecord) / sizeof(std::int32_t);
  module.attr("MAX_ROUND_ROWS") = gpu::max_rows;
  module.def(
      "slot_sampling",
      [](const SamplingParams& params) {
        const gpu::SlotSampling slot = gpu::slot_sampling(params);
        return py::bytes(reinterpret_cast<const char*>(&slot), sizeof(slot));
      },
      py::arg("params"));
}

}  // namespace pard::python
