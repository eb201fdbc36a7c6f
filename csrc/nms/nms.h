#pragma once
// Shared by nms.cpp and nms_cuda.cu, so that the CPU and CUDA kernels can't drift apart.
#include <cmath>
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

// True if box b (x1, y1, x2, y2) overlaps box a by more than `threshold`. The order of the operations is torchvision's
// (intersection over area_a + area_b - intersection), so that both keep the same boxes. A NaN anywhere in a box makes
// its area NaN and the answer false: such a box neither suppresses nor is suppressed.
template <typename T>
HOST_DEVICE bool overlaps(const T* a, const T* b, T threshold) {
  const T left = a[0] < b[0] ? b[0] : a[0], right = b[2] < a[2] ? b[2] : a[2];
  const T top = a[1] < b[1] ? b[1] : a[1], bottom = b[3] < a[3] ? b[3] : a[3];
  const T width = right - left > T(0) ? right - left : T(0), height = bottom - top > T(0) ? bottom - top : T(0);
  const T intersection = width * height;
  const T area_a = (a[2] - a[0]) * (a[3] - a[1]), area_b = (b[2] - b[0]) * (b[3] - b[1]);
  return intersection / (area_a + area_b - intersection) > threshold;
}

// The largest T that is not above `threshold`: comparing with it in T decides as comparing with the double would.
template <typename T>
T threshold_in(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, T(-1)) : rounded;
}

// Launches the CUDA kernels. `mask` is scratch of nms_mask_words(n) words; `groups` may be null. Returns nullptr or an
// error message.
constexpr int kNmsBlock = 64;  // boxes per bit mask word
inline int64_t nms_blocks(int64_t n) {
  return (n + kNmsBlock - 1) / kNmsBlock;
}
inline int64_t nms_mask_words(int64_t n) {
  return n * nms_blocks(n);
}
template <typename T>
const char* launch_nms(const T* boxes, const int64_t* groups, int64_t n, T threshold, uint64_t* mask, bool* keep,
                       void* stream);

}  // namespace mrcnn
