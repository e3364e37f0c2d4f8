#pragma once

#include "bindings.h"
#include "pard/logits.h"

namespace pard::python {

// Logits that belong to a Python tensor, and what keeps that tensor alive.
struct BorrowedLogits {
  py::object owner;
  LogitsView view;
};

// Borrows a tensor that speaks DLPack (NumPy, PyTorch, ...), of shape [rows, vocabulary] or
// [vocabulary] and type float32, float16 or bfloat16. Throws ModelError for anything else.
BorrowedLogits borrow_logits(const py::object& tensor);

}  // namespace pard::python
