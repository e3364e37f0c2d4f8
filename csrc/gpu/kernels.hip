// The entry points of the code objects: compiled for AMD by clang (-x hip) and for NVIDIA by nvcc
// (-x cu). What they do is in kernels.h.

#include "kernels.h"

extern "C" {

PARD_KERNEL void pard_build_input(pard::gpu::DraftInputArgs args) { pard::gpu::build_input(args); }

PARD_KERNEL void pard_choose_and_verify(pard::gpu::ChooseArgs args) {
  __shared__ pard::gpu::Scratch scratch;
  pard::gpu::choose_and_verify(args, scratch);
}
}
