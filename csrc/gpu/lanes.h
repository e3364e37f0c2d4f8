#pragma once

// The few words in which kernels are written, for three worlds: HIP and CUDA, where a block's lanes
// are the hardware's, and plain C++, where each is a thread (tests). No lane knows of warps: lanes
// talk through shared memory and barriers alone, so that nothing depends on how wide a warp is.

#include <cstdint>

#if defined(__HIP__) || defined(__CUDACC__)
#define PARD_ON_GPU 1
#else
#define PARD_ON_GPU 0
#endif

// clang's HIP mode without ROCm's headers, which these code objects do not need.
#if defined(__HIP__)
#define __host__ __attribute__((host))
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __forceinline__ inline __attribute__((always_inline))
#define __HIPCC__ 1  // for noise.h
#endif

#if defined(__HIP__)
#define PARD_KERNEL __global__ __attribute__((launch_bounds(512)))
#elif defined(__CUDACC__)
#define PARD_KERNEL __global__ __launch_bounds__(512, 2)
#endif

// Arrays indexed by an unrolled loop stay in registers.
#if PARD_ON_GPU
#define PARD_DEVICE __device__ __forceinline__
#define PARD_UNROLL _Pragma("unroll")
#else
#define PARD_DEVICE inline
#define PARD_UNROLL
#endif

namespace pard::gpu {

// Lanes of a block: one in plain C++, unless a test has threads for more.
#if defined(PARD_GPU_LANES)
inline constexpr int num_lanes = PARD_GPU_LANES;
#else
inline constexpr int num_lanes = PARD_ON_GPU ? 512 : 1;
#endif

#if defined(__HIP__)

PARD_DEVICE int lane() { return static_cast<int>(__builtin_amdgcn_workitem_id_x()); }
PARD_DEVICE int block_x() { return static_cast<int>(__builtin_amdgcn_workgroup_id_x()); }
PARD_DEVICE int block_y() { return static_cast<int>(__builtin_amdgcn_workgroup_id_y()); }
PARD_DEVICE void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
PARD_DEVICE void add_shared(std::uint64_t& sum, std::uint64_t value) {
  __hip_atomic_fetch_add(&sum, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
}
PARD_DEVICE void set_shared(std::int32_t& flag) {
  __hip_atomic_store(&flag, 1, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
}
PARD_DEVICE std::uint32_t arrive(std::uint32_t& count) {
  return __hip_atomic_fetch_add(&count, 1U, __ATOMIC_ACQ_REL, __HIP_MEMORY_SCOPE_AGENT);
}

#elif defined(__CUDACC__)

PARD_DEVICE int lane() { return static_cast<int>(threadIdx.x); }
PARD_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
PARD_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
PARD_DEVICE void barrier() { __syncthreads(); }
PARD_DEVICE void add_shared(std::uint64_t& sum, std::uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(&sum), static_cast<unsigned long long>(value));
}
PARD_DEVICE void set_shared(std::int32_t& flag) { atomicExch(&flag, 1); }
PARD_DEVICE std::uint32_t arrive(std::uint32_t& count) {
  __threadfence();
  const std::uint32_t before = atomicAdd(&count, 1U);
  __threadfence();
  return before;
}

#else

// Provided by whoever runs the kernels as plain C++.
inline int lane();
inline int block_x();
inline int block_y();
inline void barrier();
inline void add_shared(std::uint64_t& sum, std::uint64_t value) {
  __atomic_fetch_add(&sum, value, __ATOMIC_RELAXED);
}
inline void set_shared(std::int32_t& flag) { __atomic_store_n(&flag, 1, __ATOMIC_RELAXED); }
inline std::uint32_t arrive(std::uint32_t& count) {
  return __atomic_fetch_add(&count, 1U, __ATOMIC_ACQ_REL);
}

#endif

}  // namespace pard::gpu
