#pragma once
// What the CPU kernels of RoIAlign know of each region before they touch a pixel: its place in the order of work, and
// its weights along both axes.
#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "../common.h"
#include "roi_align.h"

namespace mrcnn {

// A sparse matrix along one axis, one row per output: bins made of pixels, or for gradients pixels made of bins. Filled
// again, it keeps its memory.
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
void fill_bins_from_pixels(const AxisGeometry<T>& axis, AxisMatrix<T>& matrix) {
  matrix.begin.resize(axis.bins + 1);
  matrix.taps.clear();
  matrix.low = matrix.high = 0;
  for (int bin = 0; bin < axis.bins; ++bin) {
    const SampleRange range = sample_range(axis, bin);
    const size_t used = matrix.taps.size(), room = 2 * static_cast<size_t>(range.last - range.first);
    if (bin == 0) matrix.taps.reserve(std::min<size_t>(room, axis.length) * axis.bins);
    matrix.taps.resize(used + room);
    const int count = merged_taps(axis, bin, matrix.taps.data() + used, static_cast<int>(room));
    matrix.taps.resize(used + count);
    matrix.begin[bin + 1] = static_cast<int>(used) + count;
  }
  if (!matrix.taps.empty()) {
    matrix.low = axis.length;
    for (const Tap<T>& tap : matrix.taps) {
      matrix.low = std::min(matrix.low, tap.position);
      matrix.high = std::max(matrix.high, tap.position + 1);
    }
  }
}

// `bins` and `next` are room to work in.
template <typename T>
void fill_pixels_from_bins(const AxisGeometry<T>& axis, AxisMatrix<T>& bins, std::vector<int>& next,
                           AxisMatrix<T>& matrix) {
  fill_bins_from_pixels(axis, bins);
  matrix.first = bins.low;
  matrix.high = axis.bins;
  matrix.begin.assign(bins.high - bins.low + 1, 0);
  for (const Tap<T>& tap : bins.taps) ++matrix.begin[tap.position - bins.low + 1];
  for (int r = 0; r < matrix.rows(); ++r) matrix.begin[r + 1] += matrix.begin[r];
  matrix.taps.resize(bins.taps.size());
  next.assign(matrix.begin.begin(), matrix.begin.end());
  for (int bin = 0; bin < axis.bins; ++bin) {
    for (int i = bins.begin[bin]; i < bins.begin[bin + 1]; ++i) {
      matrix.taps[next[bins.taps[i].position - bins.low]++] = {bin, bins.taps[i].weight};
    }
  }
}

// The regions of a call, neighbours in memory next to each other, so that what one has read is still in the cache when
// the next one needs it. The order depends on the regions alone, and with it the rounding of gradients.
template <typename T>
struct Order {
  struct Place {
    int64_t region;  // its place in the call
    int level, image;
  };

  const FeatureMaps& maps;
  const Pooling& pooling;
  const T* rois;  // [count, 5]: image, x1, y1, x2, y2
  std::vector<Place> places;
  std::vector<int64_t> starts;  // of (level, image) are [starts[level * images + image], starts[... + 1])

  int64_t start(int level, int64_t image) const { return starts[level * maps.images + image]; }

  AxisGeometry<T> rows(const Place& place) const {
    const T* roi = rois + 5 * place.region;
    return axis_geometry(roi[2], roi[4], static_cast<T>(maps.scale[place.level]), pooling.height,
                         maps.height[place.level], pooling);
  }
  AxisGeometry<T> columns(const Place& place) const {
    const T* roi = rois + 5 * place.region;
    return axis_geometry(roi[1], roi[3], static_cast<T>(maps.scale[place.level]), pooling.width,
                         maps.width[place.level], pooling);
  }
};

// Raises if an image index is not one of the maps'. The order keeps references to `maps` and `pooling`.
template <typename T>
Order<T> ordered(const T* rois, int64_t count, const FeatureMaps& maps, const Pooling& pooling) {
  struct Key {
    int64_t cell;  // level * images + image
    T top;
    int64_t region;
  };
  std::vector<Key> keys(count);
  for (int64_t r = 0; r < count; ++r) {
    const T* roi = rois + 5 * r;
    check(roi[0] >= T(0) && roi[0] < T(maps.images), "roi_align: boxes[", r, "] lies on image ", roi[0],
          ", but the features hold ", maps.images);
    const T top = roi[2] == roi[2] ? roi[2] : T(0);
    keys[r] = {assigned_level(roi + 1, pooling) * maps.images + static_cast<int64_t>(roi[0]), top, r};
  }
  std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
    return std::tie(a.cell, a.top, a.region) < std::tie(b.cell, b.top, b.region);
  });
  Order<T> order{maps, pooling, rois, {}, {}};
  order.starts.assign(pooling.levels * maps.images + 1, 0);
  order.places.reserve(count);
  for (const Key& key : keys) {
    ++order.starts[key.cell + 1];
    order.places.push_back(
        {key.region, static_cast<int>(key.cell / maps.images), static_cast<int>(key.cell % maps.images)});
  }
  for (size_t i = 1; i < order.starts.size(); ++i) order.starts[i] += order.starts[i - 1];
  return order;
}

// The weights of one region, for bins made of pixels or for pixels made of bins.
template <typename T>
struct RegionPlan {
  int64_t region;
  AxisMatrix<T> rows, columns;
};

// The plans of all regions, in their order.
template <typename T>
std::vector<RegionPlan<T>> planned(const Order<T>& order, bool for_gradient) {
  const auto count = static_cast<int64_t>(order.places.size());
  std::vector<RegionPlan<T>> plans(count);
  parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    AxisMatrix<T> bins;
    std::vector<int> next;
    for (int64_t i = begin; i < end; ++i) {
      const auto& place = order.places[i];
      plans[i].region = place.region;
      if (for_gradient) {
        fill_pixels_from_bins(order.rows(place), bins, next, plans[i].rows);
        fill_pixels_from_bins(order.columns(place), bins, next, plans[i].columns);
      } else {
        fill_bins_from_pixels(order.rows(place), plans[i].rows);
        fill_bins_from_pixels(order.columns(place), plans[i].columns);
      }
    }
  });
  return plans;
}

}  // namespace mrcnn
