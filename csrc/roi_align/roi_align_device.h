#pragma once
// What the CUDA kernels of RoIAlign share: how a block finds its way around one region.
#include "../cuda_launch.h"
#include "roi_align.h"

namespace mrcnn {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <typename T>
using sum_t = decltype(widened(T{}));

// A region's geometry on its level.
template <typename A>
struct RegionAxes {
  AxisGeometry<A> rows, columns;
};

template <typename A>
__device__ __forceinline__ RegionAxes<A> region_axes(const A* roi, const FeatureMaps& maps, const Pooling& pooling,
                                                     int level) {
  const A scale = static_cast<A>(maps.scale[level]);
  return {axis_geometry(roi[2], roi[4], scale, pooling.height, maps.height[level], pooling),
          axis_geometry(roi[1], roi[3], scale, pooling.width, maps.width[level], pooling)};
}

template <typename A>
__device__ __forceinline__ bool lies_on_an_image(const A* roi, const FeatureMaps& maps) {
  return roi[0] >= A(0) && roi[0] < static_cast<A>(maps.images);
}

// Merged taps per bin and axis that are kept in shared memory. A bin with more (wider than 15 pixels) walks through its
// samples instead.
constexpr int kTableTaps = 16;

// One region as its block sees it. In dynamic shared memory lie [height + width][capacity] taps, and how many of them
// each bin has along y and x.
template <typename A>
struct BlockRegion {
  const RegionAxes<A>* axes;
  const Tap<A>* taps;
  const int* counts;
  int capacity, level;
  int64_t image;

  // Calls add(row, column, weight) for the pixels of one bin.
  template <typename Add>
  __device__ __forceinline__ void visit(const Pooling& pooling, int y, int x, const Add& add) const {
    const int row_count = counts[y], column_count = counts[pooling.height + x];
    if (row_count <= capacity && column_count <= capacity) {
      const Tap<A>*rows = taps + y * capacity, *columns = taps + (pooling.height + x) * capacity;
      for (int i = 0; i < row_count; ++i) {
#pragma unroll 2
        for (int j = 0; j < column_count; ++j) {
          add(rows[i].position, columns[j].position, rows[i].weight * columns[j].weight);
        }
      }
    } else if (row_count > 0 && column_count > 0) {
      const AxisGeometry<A>&rows = axes->rows, &columns = axes->columns;
      const SampleRange row_range = sample_range(rows, y), column_range = sample_range(columns, x);
      const A share = A(1) / (static_cast<A>(rows.samples) * static_cast<A>(columns.samples));
      for (int i = row_range.first; i < row_range.last; ++i) {
        Sample<A> row, column;
        if (!sample_at(rows, y, i, row)) continue;
        for (int j = column_range.first; j < column_range.last; ++j) {
          if (!sample_at(columns, x, j, column)) continue;
#pragma unroll 1
          for (int corner = 0; corner < 4; ++corner) {
            const bool lower = corner / 2 == 1, right = corner % 2 == 1;
            const A weight =
                (lower ? row.high_weight : row.low_weight) * (right ? column.high_weight : column.low_weight) * share;
            if (weight != A(0)) add(lower ? row.high : row.low, right ? column.high : column.low, weight);
          }
        }
      }
    }
  }
};

// All threads of the block together. `axes` is the block's own, in shared memory. A region of no image has no taps.
template <typename A>
__device__ __forceinline__ BlockRegion<A> block_region(const A* roi, const FeatureMaps& maps, const Pooling& pooling,
                                                       int capacity, RegionAxes<A>* axes) {
  const int bins = pooling.height + pooling.width;
  auto* taps = static_cast<Tap<A>*>(dynamic_shared());
  auto* counts = reinterpret_cast<int*>(taps + bins * capacity);
  const bool on_image = lies_on_an_image(roi, maps);
  const int level = assigned_level(roi + 1, pooling);
  if (threadIdx.x == 0) *axes = region_axes(roi, maps, pooling, level);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < bins; i += kThreads) {
    const bool vertical = i < pooling.height;
    counts[i] = !on_image ? 0
                          : merged_taps(vertical ? axes->rows : axes->columns, vertical ? i : i - pooling.height,
                                        taps + i * capacity, capacity);
  }
  __syncthreads();
  return {axes, taps, counts, capacity, level, on_image ? static_cast<int64_t>(roi[0]) : 0};
}

// How many taps per bin fit, and the bytes of dynamic shared memory for them.
template <typename A>
struct TableSize {
  int capacity;
  size_t bytes;

  explicit TableSize(const Pooling& pooling) {
    const size_t bins = pooling.height + pooling.width, full = bins * (kTableTaps * sizeof(Tap<A>) + sizeof(int));
    const bool fits = full <= kSharedBytes - sizeof(RegionAxes<A>);
    capacity = fits ? kTableTaps : 0;
    bytes = fits ? full : bins * sizeof(int);
  }
  bool fits() const { return bytes <= kSharedBytes - sizeof(RegionAxes<A>); }
};

}  // namespace mrcnn
