// Overlaps of boxes on the device.
#include "../cuda_launch.h"
#include "box_iou.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kWarp = 0xffffffffu;

dim3 blocks_for(int64_t threads) {
  return dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
}

// One thread = one pair [i, j]; neighbours write neighbouring values.
template <Measure kMeasure, typename T>
__global__ void measure_pairs(const T* __restrict__ boxes1, const T* __restrict__ boxes2, int64_t columns,
                              int64_t count, T* __restrict__ overlaps) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= count) return;
  overlaps[index] =
      measured<kMeasure>(corners_at(boxes1 + 4 * (index / columns)), corners_at(boxes2 + 4 * (index % columns)), T(0));
}

// One warp = one box of one list, the first or (kOfSecond) the second: its lanes take the boxes of the other list in
// turn, and their sums are added in a fixed order.
template <Measure kMeasure, bool kOfSecond, typename T>
__global__ void differentiate_pairs(const T* __restrict__ gradient, const T* __restrict__ boxes1, int64_t rows,
                                    const T* __restrict__ boxes2, int64_t columns, T* __restrict__ sums) {
  const int64_t own = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  if (own >= (kOfSecond ? columns : rows)) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T sum[4] = {0, 0, 0, 0};
  for (int64_t other = lane; other < (kOfSecond ? rows : columns); other += 32) {
    const int64_t i = kOfSecond ? other : own, j = kOfSecond ? own : other;
    add_derivatives<kMeasure, T>(corners_at(boxes1 + 4 * i), corners_at(boxes2 + 4 * j), T(0),
                                 gradient[i * columns + j], kOfSecond ? nullptr : sum, kOfSecond ? sum : nullptr);
  }
  for (int k = 0; k < 4; ++k) {
    for (int distance = 16; distance > 0; distance /= 2) sum[k] += __shfl_xor_sync(kWarp, sum[k], distance);
  }
  if (lane < 4) sums[4 * own + lane] = lane == 0 ? sum[0] : lane == 1 ? sum[1] : lane == 2 ? sum[2] : sum[3];
}

// One thread = one pair.
template <Measure kMeasure, typename T>
__global__ void measure_paired(const T* __restrict__ boxes1, const T* __restrict__ boxes2, int64_t count, T eps,
                               T* __restrict__ overlaps) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) overlaps[i] = measured<kMeasure>(corners_at(boxes1 + 4 * i), corners_at(boxes2 + 4 * i), eps);
}

// One thread = one pair, the gradients of both its boxes.
template <Measure kMeasure, typename T>
__global__ void differentiate_paired(const T* __restrict__ gradient, const T* __restrict__ boxes1,
                                     const T* __restrict__ boxes2, int64_t count, T eps, T* __restrict__ gradient1,
                                     T* __restrict__ gradient2) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  T sum1[4] = {0, 0, 0, 0}, sum2[4] = {0, 0, 0, 0};
  add_derivatives<kMeasure, T>(corners_at(boxes1 + 4 * i), corners_at(boxes2 + 4 * i), eps, gradient[i], sum1, sum2);
  for (int k = 0; k < 4; ++k) {
    gradient1[4 * i + k] = sum1[k];
    gradient2[4 * i + k] = sum2[k];
  }
}

}  // namespace

template <typename T>
const char* launch_box_overlaps(Measure measure, const T* boxes1, int64_t rows, const T* boxes2, int64_t columns,
                                T* overlaps, void* stream) {
  const int64_t count = rows * columns;
  return with_measure(measure, [&](auto constant) {
    return launch(&measure_pairs<decltype(constant)::value, T>, blocks_for(count), dim3(kThreads), 0, stream, boxes1,
                  boxes2, columns, count, overlaps);
  });
}

template <typename T>
const char* launch_box_overlaps_backward(Measure measure, const T* gradient, const T* boxes1, int64_t rows,
                                         const T* boxes2, int64_t columns, T* gradient1, T* gradient2, void* stream) {
  return with_measure(measure, [&](auto constant) {
    constexpr Measure kMeasure = decltype(constant)::value;
    const char* failure = nullptr;
    if (rows > 0) {
      failure = launch(&differentiate_pairs<kMeasure, false, T>, blocks_for(32 * rows), dim3(kThreads), 0, stream,
                       gradient, boxes1, rows, boxes2, columns, gradient1);
    }
    if (failure != nullptr || columns == 0) return failure;
    return launch(&differentiate_pairs<kMeasure, true, T>, blocks_for(32 * columns), dim3(kThreads), 0, stream,
                  gradient, boxes1, rows, boxes2, columns, gradient2);
  });
}

template <typename T>
const char* launch_paired_box_overlaps(Measure measure, const T* boxes1, const T* boxes2, int64_t count, T eps,
                                       T* overlaps, void* stream) {
  return with_measure(measure, [&](auto constant) {
    return launch(&measure_paired<decltype(constant)::value, T>, blocks_for(count), dim3(kThreads), 0, stream, boxes1,
                  boxes2, count, eps, overlaps);
  });
}

template <typename T>
const char* launch_paired_box_overlaps_backward(Measure measure, const T* gradient, const T* boxes1, const T* boxes2,
                                                int64_t count, T eps, T* gradient1, T* gradient2, void* stream) {
  return with_measure(measure, [&](auto constant) {
    return launch(&differentiate_paired<decltype(constant)::value, T>, blocks_for(count), dim3(kThreads), 0, stream,
                  gradient, boxes1, boxes2, count, eps, gradient1, gradient2);
  });
}

template const char* launch_box_overlaps(Measure, const float*, int64_t, const float*, int64_t, float*, void*);
template const char* launch_box_overlaps(Measure, const double*, int64_t, const double*, int64_t, double*, void*);
template const char* launch_box_overlaps_backward(Measure, const float*, const float*, int64_t, const float*, int64_t,
                                                  float*, float*, void*);
template const char* launch_box_overlaps_backward(Measure, const double*, const double*, int64_t, const double*,
                                                  int64_t, double*, double*, void*);
template const char* launch_paired_box_overlaps(Measure, const float*, const float*, int64_t, float, float*, void*);
template const char* launch_paired_box_overlaps(Measure, const double*, const double*, int64_t, double, double*, void*);
template const char* launch_paired_box_overlaps_backward(Measure, const float*, const float*, const float*, int64_t,
                                                         float, float*, float*, void*);
template const char* launch_paired_box_overlaps_backward(Measure, const double*, const double*, const double*, int64_t,
                                                         double, double*, double*, void*);

}  // namespace mrcnn
