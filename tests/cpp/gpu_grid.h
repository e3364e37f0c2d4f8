#pragma once

// Runs kernels as plain C++: every lane of every block of a grid is a thread, so that
// AddressSanitizer sees what they touch and ThreadSanitizer what they forgot to wait for.

#include <barrier>
#include <memory>
#include <thread>
#include <vector>

#define PARD_GPU_LANES 16
#include "lanes.h"

namespace gpu_grid {

struct Place {
  int lane, x, y;
  std::barrier<>* block;
};

inline thread_local Place place{};

// kernel(shared) with a `Shared` per block, its contents arbitrary.
template <class Shared, class Kernel>
void run(int width, int height, const Kernel& kernel) {
  struct Block {
    std::barrier<> barrier{pard::gpu::num_lanes};
    Shared shared;
  };
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::thread> lanes;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      Block& block = *blocks.emplace_back(std::make_unique<Block>());
      for (int lane = 0; lane < pard::gpu::num_lanes; ++lane) {
        lanes.emplace_back([&block, &kernel, lane, x, y] {
          place = {lane, x, y, &block.barrier};
          kernel(block.shared);
        });
      }
    }
  }
  for (std::thread& lane : lanes) lane.join();
}

}  // namespace gpu_grid

namespace pard::gpu {

inline int lane() { return gpu_grid::place.lane; }
inline int block_x() { return gpu_grid::place.x; }
inline int block_y() { return gpu_grid::place.y; }
inline void barrier() { gpu_grid::place.block->arrive_and_wait(); }

}  // namespace pard::gpu
