#define PARD_WIDTH 8
#define PARD_TILE 8
#include "attention_kernel.inl"

namespace pard {

void attend_rows_avx2(const AttentionRows& rows, const AttentionHead& head) { attend(rows, head); }

}  // namespace pard
