#define PARD_WIDTH 16
#define PARD_ROWS 12
#include "matmul_kernel.inl"

namespace pard {

extern const MatmulKernel matmul_kernel_avx512{"avx512", width, most_rows, round_rows, multiply};

}  // namespace pard
