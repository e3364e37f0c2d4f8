#define PARD_WIDTH 8
#define PARD_TILE 8
#include "attention_kernel.inl"

namespace pard {

extern const AttentionKernel attention_kernel_avx2;
const AttentionKernel attention_kernel_avx2 = {gather, finish};

}  // namespace pard
