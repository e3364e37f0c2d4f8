#include "attention_kernel.h"

#include <vector>

namespace pard {

// attention_kernel_*.cpp
void attend_rows_baseline(const AttentionRows& rows, const AttentionHead& head);
#ifdef PARD_X86_KERNELS
void attend_rows_avx2(const AttentionRows& rows, const AttentionHead& head);
void attend_rows_avx512(const AttentionRows& rows, const AttentionHead& head);
#endif

const std::vector<AttendRows>& all_attend_rows() {
  static const std::vector<AttendRows> runnable = [] {
    std::vector<AttendRows> found = {attend_rows_baseline};
#ifdef PARD_X86_KERNELS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found.push_back(attend_rows_avx2);
      if (__builtin_cpu_supports("avx512f")) found.push_back(attend_rows_avx512);
    }
#endif
    return found;
  }();
  return runnable;
}

AttendRows attend_rows() { return all_attend_rows().back(); }

}  // namespace pard
