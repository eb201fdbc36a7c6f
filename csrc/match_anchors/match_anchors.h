#pragma once
// Shared by match_anchors.cpp and match_anchors_cuda.cu, so that the CPU and CUDA kernels can't drift apart.
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

constexpr int64_t kBackground = -1, kIgnored = -2;

// What makes of an overlap a match. Thresholds are rounded to T, as PyTorch does when it compares a tensor with a
// number.
template <typename T>
struct MatchRule {
  T low, high, crowd_coverage;
  bool allow_low_quality;
};

template <typename T>
HOST_DEVICE T area_of(const T* box) {
  return (box[2] - box[0]) * (box[3] - box[1]);
}

// 0 where the boxes (x1, y1, x2, y2) only touch or a coordinate that is needed is NaN.
template <typename T>
HOST_DEVICE T intersection_of(const T* a, const T* b) {
  const T left = a[0] < b[0] ? b[0] : a[0], right = b[2] < a[2] ? b[2] : a[2];
  const T top = a[1] < b[1] ? b[1] : a[1], bottom = b[3] < a[3] ? b[3] : a[3];
  const T width = right - left > T(0) ? right - left : T(0), height = bottom - top > T(0) ? bottom - top : T(0);
  return width * height;
}

// Intersection over union in the order of torchvision's operations, so that ties and thresholds fall as there. NaN
// where a coordinate is, and where both boxes are empty: a NaN is greater than nothing and equals nothing.
template <typename T>
HOST_DEVICE T overlap_of(const T* a, T area_a, const T* b, T area_b) {
  const T intersection = intersection_of(a, b);
  return intersection / (area_a + area_b - intersection);
}

// The verdict on an anchor by its best overlap, before low-quality matches.
template <typename T>
HOST_DEVICE int64_t matched_to(T overlap, int64_t object, const MatchRule<T>& rule) {
  return overlap < rule.low ? kBackground : overlap < rule.high ? kIgnored : object;
}

// Launches the CUDA kernels. `best` is scratch of `count` numbers, `tops` of `objects` numbers that are 0; both are
// used only where the rule allows matches of low quality. Returns nullptr or an error message.
template <typename T>
const char* launch_match_anchors(const T* anchors, int64_t count, const T* boxes, int64_t objects, const T* crowds,
                                 int64_t crowd_count, const MatchRule<T>& rule, int32_t* best, T* tops,
                                 int64_t* matched, void* stream);

}  // namespace mrcnn
