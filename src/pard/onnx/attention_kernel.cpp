#include "attention_kernel.h"

#include <vector>

namespace pard {

// attention_kernel_*.cpp
extern const AttentionKernel attention_kernel_baseline;
#ifdef PARD_X86_KERNELS
extern const AttentionKernel attention_kernel_avx2;
extern const AttentionKernel attention_kernel_avx512;
#endif

const std::vector<AttentionKernel>& all_attention_kernels() {
  static const std::vector<AttentionKernel> runnable = [] {
    std::vector<AttentionKernel> found = {attention_kernel_baseline};
#ifdef PARD_X86_KERNELS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found.push_back(attention_kernel_avx2);
      if (__builtin_cpu_supports("avx512f")) found.push_back(attention_kernel_avx512);
    }
#endif
    return found;
  }();
  return runnable;
}

const AttentionKernel& attention_kernel() { return all_attention_kernels().back(); }

}  // namespace pard
