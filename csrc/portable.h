#pragma once
// For headers whose arithmetic runs on both devices. No Torch and no CUDA header here. HOST_DEVICE is for what belongs
// into the caller; HOST_DEVICE_CALL is for what is long and stays a function: copies of it in every kernel would cost
// the compiler minutes and the kernels registers.
#if defined(__CUDACC__) || defined(MRCNN_EMULATOR)
#define HOST_DEVICE __host__ __device__ __forceinline__
#define HOST_DEVICE_CALL __host__ __device__ __attribute__((noinline))
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#define HOST_DEVICE_CALL
#endif
