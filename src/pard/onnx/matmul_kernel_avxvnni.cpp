#define PARD_WIDTH 8
#define PARD_ROWS 6
#include "matmul_kernel.inl"

namespace pard {

extern const MatmulKernel matmul_kernel_avxvnni{"avxvnni", width, most_rows, round_rows, multiply};

}  // namespace pard
