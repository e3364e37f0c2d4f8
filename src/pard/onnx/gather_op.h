#pragma once

#include "op_run.h"

namespace pard {

// GatherBlockQuantized on the CPU: rows of a table of integers in blocks, as float32. Under the
// name and domain of ONNX Runtime's own operator, whose early versions know no `bits`; the table
// may also lie as MatMulNBits holds it, with what that has of ours. Then one table serves an
// embedding and the head that is tied to it. Not all that ONNX Runtime's has, see
// OnnxFileSummary::gathers_are_plain.
constexpr std::size_t gather_op_inputs = 7;  // table .. zero points of ONNX Runtime's, then our own
constexpr std::size_t first_own_gather_input = 4;

struct GatherOp : OwnOp {
  GatherOp(const ort::Api& api, int threads);
  int threads;  // that look through scales
};

}  // namespace pard
