#pragma once
// Shared by box_coding.cpp and box_coding_cuda.cu, so that the CPU and CUDA kernels can't drift apart. Everything is
// done axis by axis; `low` and `high` are the box's x1 and x2, or its y1 and y2.
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

template <typename T>
struct Coding {
  T weights[4];
  T clamp;          // of dw and dh after division by their weights; decoding only
  int64_t anchors;  // row r of the deltas belongs to anchor r / repeats % anchors; decoding only
  int64_t repeats;

  HOST_DEVICE int64_t anchor_of(int64_t row) const { return row / repeats % anchors; }
};

// Distance of the centres in anchor sizes.
template <typename T>
HOST_DEVICE T encoded_shift(T low, T high, T anchor_low, T anchor_high) {
  const T size = high - low, anchor_size = anchor_high - anchor_low;
  return (low + T(0.5) * size - anchor_low - T(0.5) * anchor_size) / anchor_size;
}

// What the logarithm is taken of.
template <typename T>
HOST_DEVICE T size_ratio(T low, T high, T anchor_low, T anchor_high) {
  return (high - low) / (anchor_high - anchor_low);
}

// What exp() is taken of. A NaN stays.
template <typename T>
HOST_DEVICE T limited(T delta, T weight, T clamp) {
  const T divided = delta / weight;
  return divided > clamp ? clamp : divided;
}

template <typename T>
HOST_DEVICE void decode_axis(T shift, T weight, T scale, T anchor_low, T anchor_high, T* low, T* high) {
  const T size = anchor_high - anchor_low;
  const T center = anchor_low + T(0.5) * size + shift / weight * size, half = T(0.5) * size * scale;
  *low = center - half;
  *high = center + half;
}

// A coordinate inside of 0..limit. A NaN stays.
template <typename T>
HOST_DEVICE T clipped(T value, T limit) {
  const T above = value < T(0) ? T(0) : value;
  return above > limit ? limit : above;
}
// The borders themselves have no gradient, as in PyTorch.
template <typename T>
HOST_DEVICE bool is_inside(T value, T limit) {
  return value > T(0) && value < limit;
}

// Gradients by the box's and by the anchor's sides, of the encoded shift and of the logarithm of the ratio.
template <typename T>
HOST_DEVICE void encode_axis_backward(T by_shift, T by_log, T low, T high, T anchor_low, T anchor_high, T* to_low,
                                      T* to_high, T* to_anchor_low, T* to_anchor_high) {
  const T size = high - low, anchor_size = anchor_high - anchor_low;
  const T shift = encoded_shift(low, high, anchor_low, anchor_high);
  const T by_center = T(0.5) * by_shift / anchor_size, by_size = by_log / size;
  const T by_anchor_size = (by_log + by_shift * shift) / anchor_size;
  *to_low = by_center - by_size;
  *to_high = by_center + by_size;
  *to_anchor_low = by_anchor_size - by_center;
  *to_anchor_high = -by_anchor_size - by_center;
}

// Gradients by the deltas, and added to those by the anchor's sides. `scale` is exp() of the limited delta.
template <typename T>
HOST_DEVICE void decode_axis_backward(T by_low, T by_high, T shift, T shift_weight, T size_delta, T size_weight,
                                      T clamp, T scale, T anchor_low, T anchor_high, T* to_shift, T* to_size,
                                      T* to_anchor_low, T* to_anchor_high) {
  const T size = anchor_high - anchor_low;
  const T by_center = by_low + by_high, by_half = by_high - by_low;
  *to_shift = by_center * size / shift_weight;
  *to_size = size_delta / size_weight >= clamp ? T(0) : by_half * T(0.5) * size * scale / size_weight;
  const T by_anchor_size = by_center * shift / shift_weight + by_half * T(0.5) * scale;
  *to_anchor_low += T(0.5) * by_center - by_anchor_size;
  *to_anchor_high += T(0.5) * by_center + by_anchor_size;
}

// Launch the CUDA kernels; return nullptr or an error message. All arrays are [rows, 4], those of anchors
// [coding.anchors, 4].
template <typename T>
const char* launch_encode(const T* boxes, const T* anchors, int64_t rows, const Coding<T>& coding, T* deltas,
                          void* stream);
template <typename T>
const char* launch_encode_backward(const T* gradient, const T* boxes, const T* anchors, int64_t rows,
                                   const Coding<T>& coding, T* to_boxes, T* to_anchors, void* stream);
template <typename T>
const char* launch_decode(const T* deltas, const T* anchors, int64_t rows, const Coding<T>& coding, T* boxes,
                          void* stream);
template <typename T>
const char* launch_decode_backward(const T* gradient, const T* deltas, const T* anchors, int64_t rows,
                                   const Coding<T>& coding, T* to_deltas, T* to_anchors, void* stream);
template <typename T>
const char* launch_clip(const T* boxes, int64_t rows, T height, T width, T* clipped, void* stream);
template <typename T>
const char* launch_clip_backward(const T* gradient, const T* boxes, int64_t rows, T height, T width, T* to_boxes,
                                 void* stream);

}  // namespace mrcnn
