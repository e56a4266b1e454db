// Launches that run on the CPU: csrc/cuda/common/stream.h for tensors of the CPU. The library registers
// under another name, so that it never meets the real one.
#pragma once

#include <cstdlib>

#include "common/op.h"
#include "device.h"

#define r1_cuda r1_emulated_cuda
#define CUDA CPU

namespace r1 {
struct OnDevice {
  explicit OnDevice(const Tensor&) {}

  bool is_sm90() const { return std::getenv("R1_EMULATE_SM90") != nullptr; }

  template <class... Parameters, class... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
              const Arguments&... arguments) const {
    launch_clusters(name, kernel, grid, threads, 1, 0, arguments...);
  }
  template <class... Parameters, class... Arguments>
  void launch_clusters(const char*, void (*kernel)(Parameters...), dim3 grid, int threads,
                       int cluster, int shared, const Arguments&... arguments) const {
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += cluster)
        emulator::run_cluster(grid, x, y, threads, cluster, shared, [&] { kernel(arguments...); });
  }

  template <class... Given>
  void launch_early(const Given&... given) const {
    launch_clusters(given...);
  }

  int multiprocessors() const { return 4; }

  template <class... Parameters, class... Arguments>
  void launch_together(const char* name, void (*kernel)(Parameters...), int blocks, int threads,
                       int shared, const Arguments&... arguments) const {
    launch_clusters(name, kernel, dim3(blocks), threads, blocks, shared, arguments...);
  }
};
}  // namespace r1
