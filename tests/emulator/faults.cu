// Kernels with a fault each, which the emulator must find, and the same without it, which must pass.
#include "../../csrc/cuda_launch.h"

namespace {

// Every thread writes its number; then every thread reads its neighbour's.
__global__ void neighbours(bool with_barrier, int* out) {
  auto* numbers = static_cast<int*>(mrcnn::dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  numbers[thread] = thread;
  if (with_barrier) __syncthreads();
  out[thread] = numbers[(thread + 1) % threads];
}

// One warp waits for the block, one lane of the other for its warp.
__global__ void divergent_barrier() {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x == 32) __syncwarp();
}

__global__ void barrier_after_return() {
  if (threadIdx.x == 0) return;
  __syncthreads();
}

__global__ void missing_lane() {
  if (threadIdx.x % 32 != 5) __ballot_sync(0xffffffffu, 1);
}

__global__ void foreign_mask() {
  __ballot_sync(threadIdx.x % 32 < 16 ? 0xffff0000u : 0x0000ffffu, 1);
}

__global__ void shuffle_from_outside(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, static_cast<int>(threadIdx.x), 20);
}

__global__ void write_at(int* out, int64_t index) {
  out[index] = 1;
}

}  // namespace

extern "C" {

void run_neighbours(int with_barrier, int threads, int* out) {
  mrcnn::launch(&neighbours, dim3(1), dim3(threads), threads * sizeof(int), nullptr, with_barrier != 0, out);
}

// The words of the emulator for a fault, or nullptr if it found none.
const char* run_fault(int number) {
  static std::string message;
  int out[32];
  try {
    if (number == 0) mrcnn::launch(&divergent_barrier, dim3(1), dim3(64), 0, nullptr);
    if (number == 1) mrcnn::launch(&barrier_after_return, dim3(1), dim3(64), 0, nullptr);
    if (number == 2) mrcnn::launch(&missing_lane, dim3(1), dim3(32), 0, nullptr);
    if (number == 3) mrcnn::launch(&foreign_mask, dim3(1), dim3(32), 0, nullptr);
    if (number == 4) mrcnn::launch(&shuffle_from_outside, dim3(1), dim3(32), 0, nullptr, &out[0]);
    if (number == 5) mrcnn::launch(&barrier_after_return, dim3(1), dim3(2048), 0, nullptr);
    if (number == 6) mrcnn::launch(&barrier_after_return, dim3(1, 70000), dim3(32), 0, nullptr);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

void run_write(int64_t index, int size) {
  std::vector<int> out(size);
  mrcnn::launch(&write_at, dim3(1), dim3(1), 0, nullptr, out.data(), index);
}

}  // extern "C"
