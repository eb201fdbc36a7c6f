// Boxes as deltas to anchors, and back, on the device.
#include "../cuda_launch.h"
#include "box_coding.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 256;

dim3 blocks_for(int64_t threads) {
  return dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
}

__device__ __forceinline__ int64_t thread_number() {
  return int64_t{blockIdx.x} * kThreads + threadIdx.x;
}

__device__ __forceinline__ float logarithm(float value) {
  return logf(value);
}
__device__ __forceinline__ double logarithm(double value) {
  return log(value);
}
__device__ __forceinline__ float exponential(float value) {
  return expf(value);
}
__device__ __forceinline__ double exponential(double value) {
  return exp(value);
}

// One thread = one axis of one box: a shift and a size.
template <typename T>
__global__ void encode(const T* __restrict__ boxes, const T* __restrict__ anchors, int64_t rows,
                       const __grid_constant__ Coding<T> coding, T* __restrict__ deltas) {
  const int64_t thread = thread_number();
  if (thread >= 2 * rows) return;
  const int axis = static_cast<int>(thread % 2);
  const int64_t low = thread / 2 * 4 + axis, high = low + 2;
  deltas[low] = encoded_shift(boxes[low], boxes[high], anchors[low], anchors[high]) * coding.weights[axis];
  deltas[high] = logarithm(size_ratio(boxes[low], boxes[high], anchors[low], anchors[high])) * coding.weights[axis + 2];
}

// One thread = one axis of one box and of its anchor.
template <typename T>
__global__ void encode_backward(const T* __restrict__ gradient, const T* __restrict__ boxes,
                                const T* __restrict__ anchors, int64_t rows, const __grid_constant__ Coding<T> coding,
                                T* __restrict__ to_boxes, T* __restrict__ to_anchors) {
  const int64_t thread = thread_number();
  if (thread >= 2 * rows) return;
  const int axis = static_cast<int>(thread % 2);
  const int64_t low = thread / 2 * 4 + axis, high = low + 2;
  encode_axis_backward(gradient[low] * coding.weights[axis], gradient[high] * coding.weights[axis + 2], boxes[low],
                       boxes[high], anchors[low], anchors[high], to_boxes + low, to_boxes + high, to_anchors + low,
                       to_anchors + high);
}

// One thread = one axis of one box.
template <typename T>
__global__ void decode(const T* __restrict__ deltas, const T* __restrict__ anchors, int64_t rows,
                       const __grid_constant__ Coding<T> coding, T* __restrict__ boxes) {
  const int64_t thread = thread_number();
  if (thread >= 2 * rows) return;
  const int axis = static_cast<int>(thread % 2);
  const int64_t row = thread / 2, low = 4 * row + axis, high = low + 2, anchor = 4 * coding.anchor_of(row) + axis;
  const T scale = exponential(limited(deltas[high], coding.weights[axis + 2], coding.clamp));
  decode_axis(deltas[low], coding.weights[axis], scale, anchors[anchor], anchors[anchor + 2], boxes + low,
              boxes + high);
}

// One thread = one axis of one anchor: it walks over the deltas that belong to the anchor, in rising order.
template <typename T>
__global__ void decode_backward(const T* __restrict__ gradient, const T* __restrict__ deltas,
                                const T* __restrict__ anchors, int64_t rows, const __grid_constant__ Coding<T> coding,
                                T* __restrict__ to_deltas, T* __restrict__ to_anchors) {
  const int64_t thread = thread_number();
  if (thread >= 2 * coding.anchors) return;
  const int axis = static_cast<int>(thread % 2);
  const int64_t own = thread / 2, anchor = 4 * own + axis;
  T to_low = 0, to_high = 0;
  for (int64_t first = own * coding.repeats; first < rows; first += coding.anchors * coding.repeats) {
    for (int64_t row = first; row < first + coding.repeats; ++row) {
      const int64_t low = 4 * row + axis, high = low + 2;
      const T scale = exponential(limited(deltas[high], coding.weights[axis + 2], coding.clamp));
      decode_axis_backward(gradient[low], gradient[high], deltas[low], coding.weights[axis], deltas[high],
                           coding.weights[axis + 2], coding.clamp, scale, anchors[anchor], anchors[anchor + 2],
                           to_deltas + low, to_deltas + high, &to_low, &to_high);
    }
  }
  to_anchors[anchor] = to_low;
  to_anchors[anchor + 2] = to_high;
}

// One thread = one coordinate.
template <typename T>
__global__ void clip(const T* __restrict__ boxes, int64_t count, T height, T width, T* __restrict__ inside) {
  const int64_t i = thread_number();
  if (i < count) inside[i] = clipped(boxes[i], i % 2 == 0 ? width : height);
}

// One thread = one coordinate.
template <typename T>
__global__ void clip_backward(const T* __restrict__ gradient, const T* __restrict__ boxes, int64_t count, T height,
                              T width, T* __restrict__ to_boxes) {
  const int64_t i = thread_number();
  if (i < count) to_boxes[i] = is_inside(boxes[i], i % 2 == 0 ? width : height) ? gradient[i] : T(0);
}

}  // namespace

template <typename T>
const char* launch_encode(const T* boxes, const T* anchors, int64_t rows, const Coding<T>& coding, T* deltas,
                          void* stream) {
  return launch(&encode<T>, blocks_for(2 * rows), dim3(kThreads), 0, stream, boxes, anchors, rows, coding, deltas);
}

template <typename T>
const char* launch_encode_backward(const T* gradient, const T* boxes, const T* anchors, int64_t rows,
                                   const Coding<T>& coding, T* to_boxes, T* to_anchors, void* stream) {
  return launch(&encode_backward<T>, blocks_for(2 * rows), dim3(kThreads), 0, stream, gradient, boxes, anchors, rows,
                coding, to_boxes, to_anchors);
}

template <typename T>
const char* launch_decode(const T* deltas, const T* anchors, int64_t rows, const Coding<T>& coding, T* boxes,
                          void* stream) {
  return launch(&decode<T>, blocks_for(2 * rows), dim3(kThreads), 0, stream, deltas, anchors, rows, coding, boxes);
}

template <typename T>
const char* launch_decode_backward(const T* gradient, const T* deltas, const T* anchors, int64_t rows,
                                   const Coding<T>& coding, T* to_deltas, T* to_anchors, void* stream) {
  return launch(&decode_backward<T>, blocks_for(2 * coding.anchors), dim3(kThreads), 0, stream, gradient, deltas,
                anchors, rows, coding, to_deltas, to_anchors);
}

template <typename T>
const char* launch_clip(const T* boxes, int64_t rows, T height, T width, T* inside, void* stream) {
  return launch(&clip<T>, blocks_for(4 * rows), dim3(kThreads), 0, stream, boxes, 4 * rows, height, width, inside);
}

template <typename T>
const char* launch_clip_backward(const T* gradient, const T* boxes, int64_t rows, T height, T width, T* to_boxes,
                                 void* stream) {
  return launch(&clip_backward<T>, blocks_for(4 * rows), dim3(kThreads), 0, stream, gradient, boxes, 4 * rows, height,
                width, to_boxes);
}

template const char* launch_encode(const float*, const float*, int64_t, const Coding<float>&, float*, void*);
template const char* launch_encode(const double*, const double*, int64_t, const Coding<double>&, double*, void*);
template const char* launch_encode_backward(const float*, const float*, const float*, int64_t, const Coding<float>&,
                                            float*, float*, void*);
template const char* launch_encode_backward(const double*, const double*, const double*, int64_t, const Coding<double>&,
                                            double*, double*, void*);
template const char* launch_decode(const float*, const float*, int64_t, const Coding<float>&, float*, void*);
template const char* launch_decode(const double*, const double*, int64_t, const Coding<double>&, double*, void*);
template const char* launch_decode_backward(const float*, const float*, const float*, int64_t, const Coding<float>&,
                                            float*, float*, void*);
template const char* launch_decode_backward(const double*, const double*, const double*, int64_t, const Coding<double>&,
                                            double*, double*, void*);
template const char* launch_clip(const float*, int64_t, float, float, float*, void*);
template const char* launch_clip(const double*, int64_t, double, double, double*, void*);
template const char* launch_clip_backward(const float*, const float*, int64_t, float, float, float*, void*);
template const char* launch_clip_backward(const double*, const double*, int64_t, double, double, double*, void*);

}  // namespace mrcnn
