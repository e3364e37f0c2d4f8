#define PARD_WIDTH 16
#define PARD_TILE 8
#include "attention_kernel.inl"

namespace pard {

extern const AttentionKernel attention_kernel_avx512;
const AttentionKernel attention_kernel_avx512 = {gather, finish};

}  // namespace pard
