#pragma once
// The only door of the .cu files to CUDA: launching, shared memory, 16-byte packets, half precision. No Torch header,
// so a .cu file compiles in seconds - and under the emulator of tests/emulator, which runs the very same kernels on a
// CPU.
#ifdef MRCNN_EMULATOR
#include "cuda_emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace mrcnn {

// Returns nullptr, or CUDA's words for what went wrong at the launch. Nothing waits for the kernel.
template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                   Arguments... arguments) {
#ifdef MRCNN_EMULATOR
  (void)stream;
  emulator::launch(grid, block, shared_bytes, [=] { kernel(arguments...); });
  return nullptr;
#else
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, arguments...);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
#endif
}

// What every device gives a block without asking.
constexpr size_t kSharedBytes = 48 * 1024;

// The block's dynamic shared memory.
__device__ __forceinline__ void* dynamic_shared() {
#ifdef MRCNN_EMULATOR
  return emulator::dynamic_shared();
#else
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
#endif
}

__device__ __forceinline__ float widened(float value) {
  return value;
}
__device__ __forceinline__ double widened(double value) {
  return value;
}
__device__ __forceinline__ float widened(__half value) {
  return __half2float(value);
}
__device__ __forceinline__ float widened(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

__device__ __forceinline__ void narrowed(float value, float& to) {
  to = value;
}
__device__ __forceinline__ void narrowed(double value, double& to) {
  to = value;
}
__device__ __forceinline__ void narrowed(float value, __half& to) {
  to = __float2half_rn(value);
}
__device__ __forceinline__ void narrowed(float value, __nv_bfloat16& to) {
  to = __float2bfloat16_rn(value);
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}

// Neighbouring numbers that move in one instruction.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Packet {
  T values[kCount];
};

template <int kCount, typename T>
__device__ __forceinline__ Packet<T, kCount> packet_at(const T* address) {
  return *reinterpret_cast<const Packet<T, kCount>*>(address);
}

}  // namespace mrcnn
