#pragma once
// Shared by nms.cpp and nms_cuda.cu, so that the CPU and CUDA kernels can't drift apart.
#include <cmath>
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

// Intersection over union of two boxes (x1, y1, x2, y2). The order of the operations is torchvision's (intersection
// over area_a + area_b - intersection), so that both keep the same boxes. NaN if a coordinate is NaN.
template <typename T>
HOST_DEVICE T overlap(const T* a, const T* b) {
  const T left = a[0] < b[0] ? b[0] : a[0], right = b[2] < a[2] ? b[2] : a[2];
  const T top = a[1] < b[1] ? b[1] : a[1], bottom = b[3] < a[3] ? b[3] : a[3];
  const T width = right - left > T(0) ? right - left : T(0), height = bottom - top > T(0) ? bottom - top : T(0);
  const T intersection = width * height;
  const T area_a = (a[2] - a[0]) * (a[3] - a[1]), area_b = (b[2] - b[0]) * (b[3] - b[1]);
  return intersection / (area_a + area_b - intersection);
}

// True if box b overlaps box a by more than `threshold`. A NaN anywhere in a box makes the answer false: such a box
// neither suppresses nor is suppressed.
template <typename T>
HOST_DEVICE bool overlaps(const T* a, const T* b, T threshold) {
  return overlap(a, b) > threshold;
}

// The largest T that is not above `threshold`: comparing with it in T decides as comparing with the double would.
template <typename T>
T threshold_in(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, T(-1)) : rounded;
}

// Scratch of the CUDA kernels. Row blocks of boxes are compared with all others, as many at a time as a mask of
// kNmsMaskWords holds (all of them up to 32768 boxes), so that memory grows with the boxes and not with their square.
constexpr int kNmsBlock = 64;                          // boxes per bit mask word
constexpr int64_t kNmsMaskWords = int64_t{1} << 24;    // 128 MB
constexpr int64_t kNmsBoxes = (int64_t{1} << 31) - 1;  // at most
inline int64_t nms_blocks(int64_t n) {
  return (n + kNmsBlock - 1) / kNmsBlock;
}
inline int64_t nms_row_blocks(int64_t n, int64_t mask_words = kNmsMaskWords) {
  const int64_t blocks = nms_blocks(n), fitting = mask_words / (kNmsBlock * (blocks > 0 ? blocks : 1));
  return fitting < 1 ? 1 : fitting < blocks ? fitting : blocks;
}
inline int64_t nms_scratch_words(int64_t n, int64_t mask_words = kNmsMaskWords) {
  return nms_blocks(n) * (kNmsBlock * nms_row_blocks(n, mask_words) + 1);
}

// Launches the CUDA kernels. `scratch` holds nms_scratch_words(n) words; `groups` may be null. Returns nullptr or an
// error message.
template <typename T>
const char* launch_nms(const T* boxes, const int64_t* groups, int64_t n, T threshold, uint64_t* scratch, bool* keep,
                       void* stream, int64_t mask_words = kNmsMaskWords);

}  // namespace mrcnn
