#include "bindings.h"

PYBIND11_MODULE(_core, module) {
  using namespace pard::python;
  module.doc() = "The decoding core of pard-rt.";
  register_errors();
  register_sampling(module);
  register_sequence(module);
  register_model(module);
  register_onnx(module);
  register_draft(module);
  register_executor(module);
  register_gpu(module);
  register_decoder(module);
}
