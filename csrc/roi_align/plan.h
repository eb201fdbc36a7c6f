#pragma once
// What the CPU kernels of RoIAlign know of each region before they touch a pixel: its weights along both axes.
#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "../common.h"
#include "roi_align.h"

namespace mrcnn {

// A sparse matrix along one axis, one row per output: bins made of pixels, or for gradients pixels made of bins.
template <typename T>
struct AxisMatrix {
  int first = 0;                 // output position of row 0
  int low = 0, high = 0;         // input positions lie in [low, high)
  std::vector<int> begin = {0};  // row r holds taps[begin[r]] up to taps[begin[r + 1]]
  std::vector<Tap<T>> taps;

  int rows() const { return static_cast<int>(begin.size()) - 1; }
  Taps<T> row(int r) const { return {taps.data() + begin[r], begin[r + 1] - begin[r]}; }
};

template <typename T>
AxisMatrix<T> bins_from_pixels(const AxisGeometry<T>& axis) {
  AxisMatrix<T> matrix;
  matrix.begin.reserve(axis.bins + 1);
  for (int bin = 0; bin < axis.bins; ++bin) {
    const SampleRange range = sample_range(axis, bin);
    const size_t used = matrix.taps.size(), room = 2 * static_cast<size_t>(range.last - range.first);
    matrix.taps.resize(used + room);
    const int count = merged_taps(axis, bin, matrix.taps.data() + used, static_cast<int>(room));
    matrix.taps.resize(used + count);
    matrix.begin.push_back(static_cast<int>(used) + count);
  }
  if (!matrix.taps.empty()) {
    matrix.low = axis.length;
    for (const Tap<T>& tap : matrix.taps) {
      matrix.low = std::min(matrix.low, tap.position);
      matrix.high = std::max(matrix.high, tap.position + 1);
    }
  }
  return matrix;
}

template <typename T>
AxisMatrix<T> pixels_from_bins(const AxisGeometry<T>& axis) {
  const AxisMatrix<T> bins = bins_from_pixels(axis);
  AxisMatrix<T> matrix;
  matrix.first = bins.low;
  matrix.high = axis.bins;
  matrix.begin.assign(bins.high - bins.low + 1, 0);
  for (const Tap<T>& tap : bins.taps) ++matrix.begin[tap.position - bins.low + 1];
  for (int r = 0; r < matrix.rows(); ++r) matrix.begin[r + 1] += matrix.begin[r];
  matrix.taps.resize(bins.taps.size());
  std::vector<int> next(matrix.begin.begin(), matrix.begin.end());
  for (int bin = 0; bin < axis.bins; ++bin) {
    for (int i = bins.begin[bin]; i < bins.begin[bin + 1]; ++i) {
      matrix.taps[next[bins.taps[i].position - bins.low]++] = {bin, bins.taps[i].weight};
    }
  }
  return matrix;
}

template <typename T>
struct RegionPlan {
  int64_t region;  // its place in the call
  int level, image;
  AxisMatrix<T> rows, columns;
};

// The regions of a call, neighbours in memory next to each other, so that what one has read is still in the cache when
// the next one needs it. The order depends on the regions alone, and with it the rounding of gradients.
template <typename T>
struct Plan {
  std::vector<RegionPlan<T>> regions;
  std::vector<int64_t> starts;  // regions of (level, image) are [starts[level * images + image], starts[... + 1])

  int64_t start(int level, int64_t image, int64_t images) const { return starts[level * images + image]; }
};

// `rois` is [count, 5]: image, x1, y1, x2, y2. Raises if an image index is not one of the maps'.
template <typename T>
Plan<T> planned(const T* rois, int64_t count, const FeatureMaps& maps, const Pooling& pooling, bool for_gradient) {
  struct Key {
    int64_t cell;  // level * images + image
    T top;
    int64_t region;
  };
  std::vector<Key> order(count);
  for (int64_t r = 0; r < count; ++r) {
    const T* roi = rois + 5 * r;
    check(roi[0] >= T(0) && roi[0] < T(maps.images), "roi_align: boxes[", r, "] lies on image ", roi[0],
          ", but the features hold ", maps.images);
    const T top = roi[2] == roi[2] ? roi[2] : T(0);
    order[r] = {assigned_level(roi + 1, pooling) * maps.images + static_cast<int64_t>(roi[0]), top, r};
  }
  std::sort(order.begin(), order.end(), [](const Key& a, const Key& b) {
    return std::tie(a.cell, a.top, a.region) < std::tie(b.cell, b.top, b.region);
  });
  Plan<T> plan;
  plan.starts.assign(pooling.levels * maps.images + 1, 0);
  for (const Key& key : order) ++plan.starts[key.cell + 1];
  for (size_t i = 1; i < plan.starts.size(); ++i) plan.starts[i] += plan.starts[i - 1];
  plan.regions.resize(count);
  parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* roi = rois + 5 * order[i].region;
      const int level = static_cast<int>(order[i].cell / maps.images);
      const T scale = static_cast<T>(maps.scale[level]);
      const auto y = axis_geometry(roi[2], roi[4], scale, pooling.height, maps.height[level], pooling);
      const auto x = axis_geometry(roi[1], roi[3], scale, pooling.width, maps.width[level], pooling);
      const int image = static_cast<int>(order[i].cell % maps.images);
      if (for_gradient) {
        plan.regions[i] = {order[i].region, level, image, pixels_from_bins(y), pixels_from_bins(x)};
      } else {
        plan.regions[i] = {order[i].region, level, image, bins_from_pixels(y), bins_from_pixels(x)};
      }
    }
  });
  return plan;
}

}  // namespace mrcnn
