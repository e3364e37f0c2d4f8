#include "matmul_kernel.h"

#include <vector>

#ifdef PARD_ARM_KERNELS
#include <sys/auxv.h>
#endif

namespace pard {

// matmul_kernel_*.cpp
extern const MatmulKernel matmul_kernel_baseline;
#ifdef PARD_X86_KERNELS
extern const MatmulKernel matmul_kernel_avx2;
extern const MatmulKernel matmul_kernel_avxvnni;
extern const MatmulKernel matmul_kernel_avx512;
#elif defined(PARD_ARM_KERNELS)
extern const MatmulKernel matmul_kernel_dotprod;
extern const MatmulKernel matmul_kernel_i8mm;
#endif

const std::vector<MatmulKernel>& all_matmul_kernels() {
  static const std::vector<MatmulKernel> runnable = [] {
    std::vector<MatmulKernel> found = {matmul_kernel_baseline};
#ifdef PARD_X86_KERNELS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
      found.push_back(matmul_kernel_avx2);
      if (__builtin_cpu_supports("avxvnni")) found.push_back(matmul_kernel_avxvnni);
      if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) {
        found.push_back(matmul_kernel_avx512);
      }
    }
#elif defined(PARD_ARM_KERNELS)
    constexpr unsigned long dotprod = 1UL << 20;  // HWCAP_ASIMDDP
    constexpr unsigned long i8mm = 1UL << 13;     // HWCAP2_I8MM
    if ((getauxval(AT_HWCAP) & dotprod) != 0) {
      found.push_back(matmul_kernel_dotprod);
      if ((getauxval(AT_HWCAP2) & i8mm) != 0) found.push_back(matmul_kernel_i8mm);
    }
#endif
    return found;
  }();
  return runnable;
}

const MatmulKernel& matmul_kernel() { return all_matmul_kernels().back(); }

}  // namespace pard
