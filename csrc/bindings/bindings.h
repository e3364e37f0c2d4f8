#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <exception>
#include <optional>

namespace pard::python {

namespace py = pybind11;

// A thread that asks for the GIL once the interpreter has ended is unwound by CPython before 3.14,
// which C++ does not survive. These wait for the end of the process instead, as 3.14 does.
template <class Ask>
void ask_for_gil(const Ask& ask) {
  try {
    ask();
  } catch (const std::exception&) {
    throw;
  } catch (...) {
    for (;;) ::pause();
  }
}

class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    ask_for_gil([this] { PyEval_RestoreThread(state_); });
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

class AcquiredGil {
 public:
  AcquiredGil() {
    ask_for_gil([this] { gil_.emplace(); });
  }

 private:
  std::optional<py::gil_scoped_acquire> gil_;
};

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
