#define PARD_WIDTH 8
#define PARD_ROWS 6
#include "matmul_kernel.inl"

namespace pard {

extern const MatmulKernel matmul_kernel_avx2{"avx2", width, most_rows, round_rows, multiply};

}  // namespace pard
