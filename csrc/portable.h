#pragma once
// For headers whose arithmetic runs on both devices. No Torch and no CUDA header here.
#if defined(__CUDACC__) || defined(MRCNN_EMULATOR)
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif
