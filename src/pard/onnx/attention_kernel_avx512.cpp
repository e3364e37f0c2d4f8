#define PARD_WIDTH 16
#define PARD_TILE 8
#include "attention_kernel.inl"

namespace pard {

void attend_rows_avx512(const AttentionRows& rows, const AttentionHead& head) {
  attend(rows, head);
}

}  // namespace pard
