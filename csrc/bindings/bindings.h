#pragma once

#include <pybind11/pybind11.h>

namespace pard::python {

namespace py = pybind11;

void register_errors();
void register_sampling(py::module_& module);
void register_sequence(py::module_& module);
void register_model(py::module_& module);
void register_onnx(py::module_& module);
void register_draft(py::module_& module);
void register_executor(py::module_& module);
void register_gpu(py::module_& module);
void register_decoder(py::module_& module);

}  // namespace pard::python
