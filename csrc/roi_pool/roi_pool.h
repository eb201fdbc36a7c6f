#pragma once
// RoI max pooling (Girshick, Fast R-CNN, 2015): which whole pixels each bin holds, shared by CPU, CUDA and emulator and
// with ps_roi_pool. Rounded and cut as torchvision does, so bins are the same to the pixel.
//
//      pixel   0   1   2   3   4   5        a region from 1 to 4, both included, in 3 bins of 4/3 pixels:
//                [   |   |   |   ]
//                [ 0   0 ]                  a bin begins at the pixel its start lies in and ends after the one
//                    [ 1   1 ]              its end lies in, so neighbours share pixels
//                        [ 2   2 ]
#include <cmath>
#include <cstdint>

#include "../portable.h"
#include "../roi_align/roi_align.h"

namespace mrcnn {

// Pixels [first, last).
struct PixelRange {
  int first, last;
};

// One axis of a region on its feature map.
template <typename T>
struct PixelAxis {
  int start;
  T bin;      // in pixels
  int limit;  // bins end here at the latest; 0: there is nothing to pool
};

// Pixels from round(low * scale) to round(high * scale), where the last one is counted if kInclusive, but one at least.
template <bool kInclusive, typename T>
HOST_DEVICE PixelAxis<T> pixel_axis(T low, T high, T scale, int bins, int limit) {
  // Far outside of any map; closer ones are what torchvision makes of them.
  constexpr T kFar = T(1 << 28);
  const T first = std::round(low * scale), last = std::round(high * scale);
  if (!(std::fabs(first) <= T(3e38)) || !(std::fabs(last) <= T(3e38))) return {0, T(0), 0};  // infinite or NaN
  const int start = static_cast<int>(first < -kFar ? -kFar : first > kFar ? kFar : first);
  const int end = static_cast<int>(last < -kFar ? -kFar : last > kFar ? kFar : last);
  const int extent = end - start + (kInclusive ? 1 : 0);
  return {start, static_cast<T>(extent > 1 ? extent : 1) / static_cast<T>(bins), limit > 0 ? limit : 0};
}

template <typename T>
HOST_DEVICE PixelRange pixel_range(const PixelAxis<T>& axis, int bin) {
  const int first = static_cast<int>(std::floor(static_cast<T>(bin) * axis.bin)) + axis.start;
  const int last = static_cast<int>(std::ceil(static_cast<T>(bin + 1) * axis.bin)) + axis.start;
  return {first < 0            ? 0
          : first > axis.limit ? axis.limit
                               : first,
          last < 0            ? 0
          : last > axis.limit ? axis.limit
                              : last};
}

// What a bin without a larger number gives: torchvision's.
constexpr float kLowest = -3.4028234663852886e38f;

struct RoiPoolCall {
  int64_t images, channels, regions;
  int height, width;                // of the map
  int pooled_height, pooled_width;  // bins
  double scale;
};

// CUDA: maps are [images, height, width, channels], regions [regions, 5] (image, x1, y1, x2, y2) in the accumulation
// type, pooled and places [regions, pooled_height, pooled_width, channels]. A place is the index of a pixel, or -1.
// `places` may be null forward. Return nullptr or an error message.
const char* launch_roi_pool(ElementType type, const RoiPoolCall& call, const void* map, const void* regions,
                            void* pooled, int32_t* places, void* stream);
const char* launch_roi_pool_backward(ElementType type, const RoiPoolCall& call, const void* gradient,
                                     const void* regions, const int32_t* places, void* map, void* stream);

}  // namespace mrcnn
