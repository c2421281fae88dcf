// Uses CUDA if there is a GPU, from a build that only links the CPU part of libtorch.
//
// src/shim.rs is the only caller; errors are returned as in shim.cpp.

#include <ATen/Context.h>
#include <c10/core/CPUAllocator.h>
#include <dlfcn.h>

#include <filesystem>

#include "caught.h"

extern "C" {

// Loads libtorch_cuda.so from `folder`. If `folder` is null, loads it from the folder of the other
// libtorch libraries if it exists there. It registers itself with the loaded libraries. Products of
// fp32 matrices may then use TF32, as with PyTorch's set_float32_matmul_precision("high").
char* lm_load_cuda(const char* folder) {
  return caught([&] {
    std::filesystem::path directory;
    if (folder != nullptr) {
      directory = folder;
    } else {
      Dl_info info;
      if (dladdr(reinterpret_cast<void*>(&c10::GetCPUAllocator), &info) == 0) return;
      directory = std::filesystem::path(info.dli_fname).parent_path();
    }
    auto library = directory / "libtorch_cuda.so";
    if (folder == nullptr && !std::filesystem::exists(library)) return;
    TORCH_CHECK(dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr, dlerror());
    at::globalContext().setAllowTF32CuBLAS(true);
  });
}

}  // extern "C"
