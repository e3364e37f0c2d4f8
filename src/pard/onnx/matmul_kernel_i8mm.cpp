#define PARD_WIDTH 4
#define PARD_ROWS 12
#include "matmul_kernel.inl"

namespace pard {

extern const MatmulKernel matmul_kernel_i8mm{"i8mm", width, most_rows, round_rows, multiply};

}  // namespace pard
