// The device of a tensor made current, and PyTorch's current stream on it, for one scope.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/op.h"

namespace r1 {
struct OnDevice {
  explicit OnDevice(const Tensor& t) : guard(t.get_device_index()) {
    void* raw = nullptr;
    R1_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &raw) == 0,
             "cannot get the current stream of CUDA device ", t.get_device_index());
    stream = static_cast<cudaStream_t>(raw);
  }
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};
}  // namespace r1
