#define PARD_WIDTH 4
#define PARD_TILE 8
#include "attention_kernel.inl"

namespace pard {

extern const AttentionKernel attention_kernel_baseline;
const AttentionKernel attention_kernel_baseline = {gather, finish};

}  // namespace pard
