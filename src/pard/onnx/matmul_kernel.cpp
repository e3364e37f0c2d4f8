#include "matmul_kernel.h"

#include <vector>

namespace pard {

// matmul_kernel_*.cpp
extern const MatmulKernel matmul_kernel_baseline;
#ifdef PARD_X86_KERNELS
extern const MatmulKernel matmul_kernel_avx2;
extern const MatmulKernel matmul_kernel_avxvnni;
extern const MatmulKernel matmul_kernel_avx512;
#endif

const std::vector<MatmulKernel>& all_matmul_kernels() {
  static const std::vector<MatmulKernel> runnable = [] {
    std::vector<MatmulKernel> found = {matmul_kernel_baseline};
#ifdef PARD_X86_KERNELS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
      found.push_back(matmul_kernel_avx2);
      if (__builtin_cpu_supports("avxvnni")) found.push_back(matmul_kernel_avxvnni);
      if (__builtin_cpu_supports("avx512vnni")) found.push_back(matmul_kernel_avx512);
    }
#endif
    return found;
  }();
  return runnable;
}

const MatmulKernel& matmul_kernel() { return all_matmul_kernels().back(); }

}  // namespace pard
