#pragma once

#include "op_run.h"

namespace pard {

// GroupQueryAttention on the CPU by the kernel of attention_kernel.h, under the name and domain of
// ONNX Runtime's own operator: a session that is given it prefers it. float32; one sequence, past
// and new keys and values in one buffer; not all that the operator has, see
// OnnxFileSummary::attention_is_plain.
//
// ONNX Runtime multiplies matrices, head by head, for which the rows of a verification are too few.
constexpr std::size_t attention_op_inputs = 12;  // query .. head_sink; those behind stay empty
constexpr std::size_t attention_op_outputs = 3;  // output, keys, values

struct AttentionOp : OwnOp {
  explicit AttentionOp(const ort::Api& api);
};

}  // namespace pard
