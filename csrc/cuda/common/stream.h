// The device of a tensor made current, and launches on PyTorch's current stream of it.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include <torch/csrc/stable/accelerator.h>

#include "common/op.h"

namespace r1 {
// Looked up at run time: it lives in libtorch_cuda, which a build of PyTorch for the CPU lacks, and
// the library is to load there too, and wherever else it was built.
inline cudaStream_t current_stream(int32_t device) {
  using Get = int32_t (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Get>(
        library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  R1_CHECK(get != nullptr && get(device, &stream) == 0,
           "cannot get the current stream of CUDA device ", device);
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t error, const char* what) {
  R1_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

class OnDevice {
 public:
  explicit OnDevice(const Tensor& t)
      : index_(t.get_device_index()), guard_(index_), stream_(current_stream(index_)) {}

  bool is_sm90() const {
    return attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
           attribute(cudaDevAttrComputeCapabilityMinor) == 0;
  }
  int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }

  template <class... Parameters, class... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
              const Arguments&... arguments) const {
    launch_clusters(name, kernel, grid, threads, 1, 0, arguments...);
  }

  // Clusters of `cluster` blocks along x, each block with `shared` bytes of dynamic shared memory.
  template <class... Parameters, class... Arguments>
  void launch_clusters(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
                       int cluster, int shared, const Arguments&... arguments) const {
    launch_with({in_clusters(cluster)}, name, kernel, grid, threads, shared, arguments...);
  }

  // The same for a kernel that calls wait_for_earlier_kernels before it reads or writes anything, and
  // may start before those are done.
  template <class... Parameters, class... Arguments>
  void launch_early(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
                    int cluster, int shared, const Arguments&... arguments) const {
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    launch_with({early, in_clusters(cluster)}, name, kernel, grid, threads, shared, arguments...);
  }

  // All blocks run at the same time, one a multiprocessor at most, and may wait for one another.
  template <class... Parameters, class... Arguments>
  void launch_together(const char* name, void (*kernel)(Parameters...), int blocks, int threads,
                       int shared, const Arguments&... arguments) const {
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    launch_with({together}, name, kernel, dim3(blocks), threads, shared, arguments...);
  }

 private:
  using Attributes = std::initializer_list<cudaLaunchAttribute>;

  static cudaLaunchAttribute in_clusters(int blocks) {
    cudaLaunchAttribute shape{};
    shape.id = blocks > 1 ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeIgnore;
    shape.val.clusterDim.x = blocks;
    shape.val.clusterDim.y = shape.val.clusterDim.z = 1;
    return shape;
  }

  // What `ask` says about `key` on this device, asked once: the driver takes a microsecond.
  template <class Key, class Ask>
  int once(Key key, const Ask& ask) const {
    static std::mutex mutex;
    static std::map<std::pair<Key, int32_t>, int> known;
    const std::lock_guard lock(mutex);
    const auto found = known.find({key, index_});
    if (found != known.end()) return found->second;
    return known[{key, index_}] = ask();
  }
  int attribute(cudaDeviceAttr which) const {
    return once(which, [&] {
      int value = 0;
      check_cuda(cudaDeviceGetAttribute(&value, which, index_), "device");
      return value;
    });
  }

  template <class... Parameters, class... Arguments>
  void launch_with(Attributes attributes, const char* name, void (*kernel)(Parameters...), dim3 grid,
                   int threads, int shared, const Arguments&... arguments) const {
    if (shared > 48 << 10) {  // more than a kernel may have unasked
      const auto allow = [&](int bytes) {
        check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                   name);
        return bytes;
      };
      const int allowed = once(reinterpret_cast<const void*>(kernel), [&] { return allow(shared); });
      if (allowed < shared) allow(shared);
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream_;
    config.attrs = const_cast<cudaLaunchAttribute*>(attributes.begin());
    config.numAttrs = attributes.size();
    check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), name);
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};
}  // namespace r1
