#pragma once

#include <cstdint>
#include <string>

#include "op_run.h"

namespace pard {

// MatMulNBits on the CPU by the kernels of matmul_kernel.h, under the name and domain of ONNX
// Runtime's own operator: a session that is given it prefers it. float32 rows, rounded to 8 bits
// (accuracy_level 4); weights of 4 or 8 bits that are constants; not all that the operator has, see
// OnnxFileSummary::products_are_plain.
//
// ONNX Runtime has kernels for one row and for many, which read weights again for every few rows
// and round otherwise. A row of this one has the same bits whatever is with it.
constexpr std::size_t matmul_op_inputs = 9;  // rows .. bias of ONNX Runtime's, then our own
constexpr std::size_t first_own_matmul_input = 6;

struct MatmulOp : OwnOp {
  // `logits`: the graph's output of logits.
  MatmulOp(const ort::Api& api, int threads, std::string logits);
  int threads;  // that pack weights
  std::string logits;

  // First rows of the coming runs' logits that nobody reads. Where this operator computes logits,
  // it leaves them as they are.
  std::int64_t unread_logits = 0;
};

}  // namespace pard
