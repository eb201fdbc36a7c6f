// Sigmoid focal loss. A reduction is made in two launches: every block adds up its own part in float64, one block adds
// up the parts, both in an order that depends on the number of logits alone. So every run gives the same bits.
#include "../cuda_launch.h"
#include "sigmoid_focal_loss.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPerThread = 8, kPerBlock = kThreads * kPerThread;

template <typename T>
using sum_t = decltype(widened(T{}));

template <typename A>
struct Example {
  A logit, target;
  bool counts;
};

// The logit at `index` with its target, which for labels follows from its column.
template <typename T>
__device__ __forceinline__ Example<sum_t<T>> example_at(const FocalCall& call, const T* logits, const void* targets,
                                                        int64_t index) {
  using A = sum_t<T>;
  const A logit = widened(logits[index]);
  if (call.classes == 0) return {logit, widened(static_cast<const T*>(targets)[index]), true};
  const int64_t label = static_cast<const int64_t*>(targets)[index / call.classes];
  const A target = label > call.classes ? static_cast<A>(NAN) : label == index % call.classes ? A(1) : A(0);
  return {logit, target, label >= 0};
}

template <typename A>
__device__ __forceinline__ Focal<A> focal_of(const FocalCall& call) {
  return {static_cast<A>(call.alpha), static_cast<A>(call.gamma)};
}

// Adds up a number of each thread of a block; thread 0 gets the sum.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double values[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  values[thread] = value;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (thread < step) values[thread] += values[thread + step];
    __syncthreads();
  }
  return values[0];
}

// One thread = one loss.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    write_losses(const __grid_constant__ FocalCall call, const T* __restrict__ logits, const void* __restrict__ targets,
                 T* __restrict__ losses) {
  using A = sum_t<T>;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= call.count) return;
  const Example<A> example = example_at(call, logits, targets, index);
  narrowed(example.counts ? focal_loss(example.logit, example.target, focal_of<A>(call)) : A(0), losses[index]);
}

// One thread = kPerThread losses, kThreads apart; one block = the sum of kPerBlock losses in a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_losses(const __grid_constant__ FocalCall call, const T* __restrict__ logits, const void* __restrict__ targets,
               double* __restrict__ partial) {
  using A = sum_t<T>;
  const int64_t first = int64_t{blockIdx.x} * kPerBlock + threadIdx.x;
  double sum = 0;
  for (int64_t i = 0; i < kPerThread; ++i) {
    const int64_t index = first + i * kThreads;
    if (index >= call.count) break;
    const Example<A> example = example_at(call, logits, targets, index);
    if (example.counts) {
      sum += static_cast<double>(focal_loss(example.logit, example.target, focal_of<A>(call)));
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block: one thread = every kThreads-th part.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_parts(const __grid_constant__ FocalCall call, const double* __restrict__ partial, int64_t parts,
              T* __restrict__ losses) {
  using A = sum_t<T>;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kThreads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  narrowed(static_cast<A>(call.reduction == Reduction::kMean ? sum / static_cast<double>(call.count) : sum), losses[0]);
}

// One thread = the gradient of one logit.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    write_gradients(const __grid_constant__ FocalCall call, const T* __restrict__ logits,
                    const void* __restrict__ targets, const T* __restrict__ gradient, T* __restrict__ out) {
  using A = sum_t<T>;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= call.count) return;
  const double share = call.reduction == Reduction::kMean ? 1 / static_cast<double>(call.count) : 1;
  const A given = call.reduction == Reduction::kNone
                      ? widened(gradient[index])
                      : static_cast<A>(static_cast<double>(widened(gradient[0])) * share);
  const Example<A> example = example_at(call, logits, targets, index);
  const A slope = example.counts ? focal_loss_gradient(example.logit, example.target, focal_of<A>(call)) : A(0);
  narrowed(given * slope, out[index]);
}

// ---- launchers

dim3 blocks_of(int64_t count, int64_t each) {
  return dim3(static_cast<unsigned>((count + each - 1) / each));
}

template <typename T>
const char* forward(const FocalCall& call, const void* logits, const void* targets, double* partial, void* losses,
                    void* stream) {
  const auto* given = static_cast<const T*>(logits);
  auto* out = static_cast<T*>(losses);
  if (call.reduction == Reduction::kNone) {
    if (call.count == 0) return nullptr;
    return launch(&write_losses<T>, blocks_of(call.count, kThreads), dim3(kThreads), 0, stream, call, given, targets,
                  out);
  }
  const int64_t parts = focal_loss_blocks(call.count);
  if (parts > 0) {
    const char* failure = launch(&sum_losses<T>, dim3(static_cast<unsigned>(parts)), dim3(kThreads), 0, stream, call,
                                 given, targets, partial);
    if (failure != nullptr) return failure;
  }
  return launch(&sum_parts<T>, dim3(1), dim3(kThreads), 0, stream, call, static_cast<const double*>(partial), parts,
                out);
}

template <typename T>
const char* backward(const FocalCall& call, const void* logits, const void* targets, const void* gradient, void* out,
                     void* stream) {
  if (call.count == 0) return nullptr;
  return launch(&write_gradients<T>, blocks_of(call.count, kThreads), dim3(kThreads), 0, stream, call,
                static_cast<const T*>(logits), targets, static_cast<const T*>(gradient), static_cast<T*>(out));
}

}  // namespace

int64_t focal_loss_blocks(int64_t count) {
  return (count + kPerBlock - 1) / kPerBlock;
}

const char* launch_focal_loss(FocalType type, const FocalCall& call, const void* logits, const void* targets,
                              double* partial, void* losses, void* stream) {
  switch (type) {
    case FocalType::kFloat:
      return forward<float>(call, logits, targets, partial, losses, stream);
    case FocalType::kDouble:
      return forward<double>(call, logits, targets, partial, losses, stream);
    case FocalType::kHalf:
      return forward<__half>(call, logits, targets, partial, losses, stream);
    case FocalType::kBFloat16:
      return forward<__nv_bfloat16>(call, logits, targets, partial, losses, stream);
  }
  return "unknown type";
}

const char* launch_focal_loss_backward(FocalType type, const FocalCall& call, const void* logits, const void* targets,
                                       const void* gradient, void* logits_gradient, void* stream) {
  switch (type) {
    case FocalType::kFloat:
      return backward<float>(call, logits, targets, gradient, logits_gradient, stream);
    case FocalType::kDouble:
      return backward<double>(call, logits, targets, gradient, logits_gradient, stream);
    case FocalType::kHalf:
      return backward<__half>(call, logits, targets, gradient, logits_gradient, stream);
    case FocalType::kBFloat16:
      return backward<__nv_bfloat16>(call, logits, targets, gradient, logits_gradient, stream);
  }
  return "unknown type";
}

}  // namespace mrcnn
