#pragma once
// RoIAlign (He et al., Mask R-CNN, 2017): the geometry, shared by CPU, CUDA and emulator.
//
// A region is cut into pooled_height x pooled_width bins, each bin is sampled on a regular grid, each sample is a
// bilinear mix of four pixels, and the bin is the mean of its samples. All of this factors per axis: with A_y, A_x the
// weights of pixels in bins along each axis, a channel's output is A_y F A_x^T and its gradient A_y^T G A_x. So
// everything below deals with one axis.
//
//      pixel    0     1     2     3     4        bin 0 of 2, two samples (x) at 0.75 and 1.75:
//               |-----|-----|-----|-----|        weights  pixel 0: 0.25 / 2, pixel 1: (0.75 + 0.25) / 2, pixel 2: 0.75
//               / 2
//                   x     x  :  x     x          - three merged taps instead of four
//               bin 0        :  bin 1
#include <cmath>
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

constexpr int kMaximumLevels = 8;

// How regions are pooled; the same for every region of a call.
struct Pooling {
  int height, width;      // bins
  int sampling_ratio;     // samples per bin and axis; <= 0: as many as the bin has pixels, rounded up
  bool aligned;           // pixel centres at .5 (Detectron2) instead of at whole numbers (the paper's code)
  double canonical_size;  // the level of a region with sqrt(area) = canonical_size is canonical_level
  int canonical_level;
  int minimum_level;  // of the first feature map
  int levels;
};

// The index of the feature map for a box x1, y1, x2, y2 in image pixels: equation 1 of "Feature Pyramid Networks" (Lin
// et al., 2017) with torchvision's 1e-6, clamped to the maps there are. A box without a size goes to the finest.
template <typename T>
HOST_DEVICE_CALL int assigned_level(const T* box, const Pooling& pooling) {
  if (pooling.levels == 1) return 0;
  const T size = std::sqrt((box[2] - box[0]) * (box[3] - box[1]));
  const T level = std::floor(T(pooling.canonical_level) + std::log2(size / T(pooling.canonical_size)) + T(1e-6)) -
                  T(pooling.minimum_level);
  if (!(level > T(0))) return 0;  // NaN too
  return level < T(pooling.levels) ? static_cast<int>(level) : pooling.levels - 1;
}

// One axis of a region on its feature map.
template <typename T>
struct AxisGeometry {
  T start, bin;      // in pixels of the feature map
  int samples;       // per bin
  int bins, length;  // length: pixels of the feature map
};

template <typename T>
HOST_DEVICE_CALL AxisGeometry<T> axis_geometry(T low, T high, T scale, int bins, int length, const Pooling& pooling) {
  const T shift = pooling.aligned ? T(0.5) : T(0);
  const T start = low * scale - shift;
  T extent = high * scale - shift - start;
  if (!pooling.aligned && extent < T(1)) extent = T(1);
  const T bin = extent / T(bins);
  int samples = pooling.sampling_ratio;
  if (samples <= 0) {
    // An inverted or not finite extent has no samples, hence gives zeros.
    constexpr int limit = 1 << 30;
    samples = !(bin > T(0)) ? 0 : bin < T(limit) ? static_cast<int>(std::ceil(bin)) : limit;
  }
  if (length == 0) samples = 0;  // a map without pixels: there is nothing that a sample just outside could mix
  return {start, bin, samples, bins, length};
}

// Where a sample lies; it moves one way with its index.
template <typename T>
HOST_DEVICE T sample_position(const AxisGeometry<T>& axis, int bin, int index) {
  return axis.start + T(bin) * axis.bin + (T(index) + T(0.5)) * axis.bin / T(axis.samples);
}

// The two neighbouring pixels that a sample mixes.
template <typename T>
struct Sample {
  int low, high;
  T low_weight, high_weight;
};

// False where the sample lies more than a pixel outside of the map (or nowhere: NaN): it counts as zero.
template <typename T>
HOST_DEVICE bool sample_at(const AxisGeometry<T>& axis, int bin, int index, Sample<T>& sample) {
  T position = sample_position(axis, bin, index);
  if (!(position >= T(-1) && position <= T(axis.length))) return false;
  if (position < T(0)) position = T(0);
  const int low = static_cast<int>(position);
  if (low >= axis.length - 1) {
    sample = {axis.length - 1, axis.length - 1, T(1), T(0)};
  } else {
    const T rest = position - T(low);
    sample = {low, low + 1, T(1) - rest, rest};
  }
  return true;
}

// The samples [first, last) of a bin.
struct SampleRange {
  int first, last;
};

// Those that lie from `low` to `high`, found by bisection. Saves walking through the millions of samples of a box that
// is far larger than its map; where there are few it is all of them.
template <typename T>
HOST_DEVICE SampleRange samples_between(const AxisGeometry<T>& axis, int bin, int low, int high) {
  constexpr int few = 64;
  if (axis.samples <= few) return {0, axis.samples};
  const bool rises = axis.bin > T(0);
  int ends[2];
  for (int side = 0; side < 2; ++side) {
    // Samples [0, begin) lie before this side's end, and those from `end` on do not.
    int begin = 0, end = axis.samples;
    while (begin < end) {
      const int middle = begin + (end - begin) / 2;
      const T position = sample_position(axis, bin, middle);
      const bool before = rises ? (side == 0 ? position < T(low) : position <= T(high))
                                : (side == 0 ? position > T(high) : position >= T(low));
      begin = before ? middle + 1 : begin;
      end = before ? end : middle;
    }
    ends[side] = begin;
  }
  return {ends[0], ends[1]};
}

// Those that lie on the map.
template <typename T>
HOST_DEVICE SampleRange sample_range(const AxisGeometry<T>& axis, int bin) {
  return samples_between(axis, bin, -1, axis.length);
}

// A position along an axis and its share.
template <typename T>
struct Tap {
  int position;
  T weight;
};

template <typename T>
struct Taps {
  const Tap<T>* data;
  int count;

  HOST_DEVICE const Tap<T>* begin() const { return data; }
  HOST_DEVICE const Tap<T>* end() const { return data + count; }
};

// A bin's taps: its samples merged by pixel. Samples move one way along the axis, so a pixel met before is among the
// last two. Returns how many there are; only the first `capacity` are written.
template <typename T>
HOST_DEVICE_CALL int merged_taps(const AxisGeometry<T>& axis, int bin, Tap<T>* taps, int capacity) {
  const T share = T(1) / T(axis.samples > 1 ? axis.samples : 1);
  const SampleRange range = sample_range(axis, bin);
  int count = 0;
  for (int i = range.first; i < range.last; ++i) {
    Sample<T> sample;
    if (!sample_at(axis, bin, i, sample)) continue;
    for (int side = 0; side < 2; ++side) {
      const int pixel = side == 0 ? sample.low : sample.high;
      const T weight = (side == 0 ? sample.low_weight : sample.high_weight) * share;
      if (weight == T(0)) continue;
      int place = count;
      for (int back = 1; back <= 2 && back <= count; ++back) {
        if (count <= capacity && taps[count - back].position == pixel) place = count - back;
      }
      if (place < count) {
        taps[place].weight += weight;
      } else {
        if (count < capacity) taps[count] = {pixel, weight};
        ++count;
      }
    }
  }
  return count;
}

// The weight of one pixel in one bin: merged_taps seen from the pixel.
template <typename T>
HOST_DEVICE T pixel_weight(const AxisGeometry<T>& axis, int bin, int pixel) {
  const SampleRange range = samples_between(axis, bin, pixel - 1, pixel + 1);
  T weight = T(0);
  for (int i = range.first; i < range.last; ++i) {
    Sample<T> sample;
    if (!sample_at(axis, bin, i, sample)) continue;
    if (sample.low == pixel) weight += sample.low_weight;
    if (sample.high == pixel) weight += sample.high_weight;
  }
  return weight / T(axis.samples > 1 ? axis.samples : 1);
}

// The feature maps (or their gradients) of a call: channels last, without gaps.
struct FeatureMaps {
  void* data[kMaximumLevels];
  int height[kMaximumLevels], width[kMaximumLevels];
  double scale[kMaximumLevels];
  int64_t images, channels;
};

// CUDA: regions is [count, 5] (image, x1, y1, x2, y2) in T's accumulation type, pooled [count, height, width,
// channels]. All addresses must be multiples of 16 bytes, and channels a multiple of packed_channels. Return nullptr or
// an error message.
enum class ElementType { kFloat, kDouble, kHalf, kBFloat16 };
inline int64_t packed_channels(ElementType type) {
  return type == ElementType::kHalf || type == ElementType::kBFloat16 ? 8 : 1;
}
const char* launch_roi_align(ElementType type, const FeatureMaps& maps, const Pooling& pooling, const void* regions,
                             int64_t count, void* pooled, void* stream);
// `workspace` holds roi_align_workspace bytes and is a multiple of 16 bytes.
int64_t roi_align_workspace(const FeatureMaps& gradients, const Pooling& pooling, int64_t count);
const char* launch_roi_align_backward(ElementType type, const FeatureMaps& gradients, const Pooling& pooling,
                                      const void* regions, int64_t count, const void* pooled_gradient, void* workspace,
                                      void* stream);
// What others do, to compare with: adds to float32 gradients, which must be zero, in whatever order threads come.
const char* launch_roi_align_backward_atomic(const FeatureMaps& gradients, const Pooling& pooling, const float* regions,
                                             int64_t count, const float* pooled_gradient, void* stream);

}  // namespace mrcnn
