#include "pard/error.h"

#include <exception>

#include "bindings.h"

namespace pard::python {

namespace {

const char* python_name(const Error& error) {
  if (dynamic_cast<const LogitsError*>(&error)) return "LogitsError";
  if (dynamic_cast<const ModelError*>(&error)) return "ModelError";
  if (dynamic_cast<const IncompatibleModels*>(&error)) return "IncompatibleModelsError";
  if (dynamic_cast<const InvalidArgument*>(&error)) return "InvalidArgumentError";
  if (dynamic_cast<const FolderError*>(&error)) return "FolderError";
  if (dynamic_cast<const RuntimeMissing*>(&error)) return "RuntimeMissingError";
  return "Error";
}

// Raises the class of pard_rt.errors that `error` stands for. A Python exception nested inside
// becomes its __cause__; one that is no Exception (KeyboardInterrupt) is raised as it is.
void raise(const Error& error) {
  py::object cause = py::none();
  ErrorDetail detail = error.detail();
  try {
    std::rethrow_if_nested(error);
  } catch (py::error_already_set& nested) {
    if (!nested.matches(PyExc_Exception)) {
      nested.restore();
      return;
    }
    cause = nested.value();
    detail.actual = py::str("{}: {}").format(py::type::of(cause).attr("__name__"), cause);
  } catch (const std::exception&) {  // its message is in the detail
  }
  const py::object type = py::module_::import("pard_rt.errors").attr(python_name(error));
  const py::object value = type(detail.problem, detail.expected, detail.actual, detail.remedy);
  if (!cause.is_none()) value.attr("__cause__") = cause;
  PyErr_SetObject(type.ptr(), value.ptr());
}

}  // namespace

void register_errors() {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      raise(error);
    }
  });
}

}  // namespace pard::python
