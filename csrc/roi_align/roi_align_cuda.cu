// RoIAlign over a pyramid of channels-last maps. Nothing is sorted by level and nothing waits for the host: each block
// finds its level itself. The gradient is gathered, pixel by pixel, so there are no atomics and every run gives the
// same bits.
#include "../cuda_launch.h"
#include "roi_align.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
using sum_t = decltype(widened(T{}));

template <typename A>
__device__ __forceinline__ AxisGeometry<A> rows_of(const A* roi, const FeatureMaps& maps, const Pooling& pooling,
                                                   int level) {
  return axis_geometry(roi[2], roi[4], static_cast<A>(maps.scale[level]), pooling.height, maps.height[level], pooling);
}

template <typename A>
__device__ __forceinline__ AxisGeometry<A> columns_of(const A* roi, const FeatureMaps& maps, const Pooling& pooling,
                                                      int level) {
  return axis_geometry(roi[1], roi[3], static_cast<A>(maps.scale[level]), pooling.width, maps.width[level], pooling);
}

// ---- forward

// Merged taps per bin and axis that are kept in shared memory. A bin with more (wider than 15 pixels) walks through its
// samples instead.
constexpr int kTableTaps = 16;

// One block = one region. One warp = one bin after the other. One lane = kVector neighbouring channels of the bin, and
// then those 32 * kVector further on. The weights along both axes are shared by the block: [height + width][capacity]
// taps and [height + width] counts.
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    pool_regions(const __grid_constant__ FeatureMaps maps, const __grid_constant__ Pooling pooling,
                 const sum_t<T>* __restrict__ regions, int capacity, T* __restrict__ pooled) {
  using A = sum_t<T>;
  const int bins = pooling.height + pooling.width;
  auto* taps = static_cast<Tap<A>*>(dynamic_shared());
  auto* counts = reinterpret_cast<int*>(taps + bins * capacity);
  const int64_t region = blockIdx.x;
  const A* roi = regions + 5 * region;
  const bool on_image = roi[0] >= A(0) && roi[0] < static_cast<A>(maps.images);
  const int level = assigned_level(roi + 1, pooling);
  const AxisGeometry<A> rows = rows_of(roi, maps, pooling, level), columns = columns_of(roi, maps, pooling, level);
  for (int i = static_cast<int>(threadIdx.x); i < bins; i += kThreads) {
    const bool vertical = i < pooling.height;
    counts[i] = !on_image ? 0
                          : merged_taps(vertical ? rows : columns, vertical ? i : i - pooling.height,
                                        taps + i * capacity, capacity);
  }
  __syncthreads();

  const int64_t channels = maps.channels, width = maps.width[level];
  const int64_t image = on_image ? static_cast<int64_t>(roi[0]) : 0;
  const T* map = static_cast<const T*>(maps.data[level]) + image * maps.height[level] * width * channels;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int bin = warp; bin < pooling.height * pooling.width; bin += kWarps) {
    const int y = bin / pooling.width, x = bin % pooling.width;
    const int row_count = counts[y], column_count = counts[pooling.height + x];
    const bool from_table = row_count <= capacity && column_count <= capacity;
    T* out = pooled + (region * pooling.height * pooling.width + bin) * channels;
    for (int64_t c = lane * kVector; c < channels; c += 32 * kVector) {
      A sums[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums[k] = A(0);
      const auto add = [&](int row, int column, A weight) {
        const auto pixel = packet_at<kVector>(map + (row * width + column) * channels + c);
#pragma unroll
        for (int k = 0; k < kVector; ++k) sums[k] = multiply_add(weight, widened(pixel.values[k]), sums[k]);
      };
      if (from_table) {
        const Tap<A>*row_taps = taps + y * capacity, *column_taps = taps + (pooling.height + x) * capacity;
        for (int i = 0; i < row_count; ++i) {
#pragma unroll 2
          for (int j = 0; j < column_count; ++j) {
            add(row_taps[i].position, column_taps[j].position, row_taps[i].weight * column_taps[j].weight);
          }
        }
      } else if (row_count > 0 && column_count > 0) {
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
              add(lower ? row.high : row.low, right ? column.high : column.low,
                  (lower ? row.high_weight : row.low_weight) * (right ? column.high_weight : column.low_weight) *
                      share);
            }
          }
        }
      }
      Packet<T, kVector> result;
#pragma unroll
      for (int k = 0; k < kVector; ++k) narrowed(sums[k], result.values[k]);
      *reinterpret_cast<Packet<T, kVector>*>(out + c) = result;
    }
  }
}

// ---- backward

//      8 pixels
//   +-+-+-+-+-+-+-+-+    One block = one tile of 4 x 8 pixels of one image and 32 * kVector of its channels: it finds
//   the |0|1|2|3|4|5|6|7|    regions that reach the tile, 256 at a time and in their order, and adds up what their bins
//   send.
//   +-+-+-+-+-+-+-+-+    One warp = the 4 pixels of one column of the tile; one lane = kVector channels of them.
//   |0|1|...        |    Every pixel is written once, so the gradient needs no zeros beforehand.
constexpr int kTileHeight = 4, kTileWidth = 8;
static_assert(kTileWidth == kWarps, "one warp per column of the tile");

// True if any sample of an axis may touch one of `count` pixels from `first`; two pixels of margin cover the bilinear
// neighbour, samples clamped from outside, and rounding.
template <typename A>
__device__ __forceinline__ bool reaches(const AxisGeometry<A>& axis, int first, int count) {
  const A end = axis.start + axis.bin * A(axis.bins);
  const A low = axis.start < end ? axis.start : end, high = axis.start < end ? end : axis.start;
  return high + A(2) > A(first) && low - A(2) < A(first + count);
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    gather_gradient(const __grid_constant__ FeatureMaps gradients, const __grid_constant__ Pooling pooling,
                    const sum_t<T>* __restrict__ regions, int64_t count, const T* __restrict__ pooled, int level) {
  using A = sum_t<T>;
  __shared__ int64_t found[kThreads];
  __shared__ int found_by_warp[kWarps];
  auto* row_weights = static_cast<A*>(dynamic_shared());           // [kTileHeight][pooling.height]
  A* column_weights = row_weights + kTileHeight * pooling.height;  // [kTileWidth][pooling.width]

  const int height = gradients.height[level], width = gradients.width[level];
  const int tiles_in_row = (width + kTileWidth - 1) / kTileWidth;
  const int first_x = static_cast<int>(blockIdx.x) % tiles_in_row * kTileWidth;
  const int first_y = static_cast<int>(blockIdx.x) / tiles_in_row * kTileHeight;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int64_t image = blockIdx.y, channels = gradients.channels;
  const int64_t channel = (int64_t{blockIdx.z} * 32 + lane) * kVector;

  A sums[kTileHeight][kVector];
#pragma unroll
  for (int i = 0; i < kTileHeight; ++i) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) sums[i][k] = A(0);
  }
  for (int64_t first_region = 0; first_region < count; first_region += kThreads) {
    const int64_t candidate = first_region + thread;
    bool reached = false;
    if (candidate < count) {
      const A* roi = regions + 5 * candidate;
      reached = roi[0] >= A(0) && roi[0] < static_cast<A>(gradients.images) && static_cast<int64_t>(roi[0]) == image &&
                assigned_level(roi + 1, pooling) == level &&
                reaches(rows_of(roi, gradients, pooling, level), first_y, kTileHeight) &&
                reaches(columns_of(roi, gradients, pooling, level), first_x, kTileWidth);
    }
    const unsigned votes = __ballot_sync(kAllLanes, reached);
    if (lane == 0) found_by_warp[warp] = __popc(votes);
    __syncthreads();
    int place = 0, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) place += found_by_warp[w];
      total += found_by_warp[w];
    }
    if (reached) found[place + __popc(votes & ((1u << lane) - 1))] = candidate;
    __syncthreads();

    for (int f = 0; f < total; ++f) {
      const int64_t region = found[f];
      const A* roi = regions + 5 * region;
      const AxisGeometry<A> rows = rows_of(roi, gradients, pooling, level);
      const AxisGeometry<A> columns = columns_of(roi, gradients, pooling, level);
      for (int i = thread; i < kTileHeight * pooling.height; i += kThreads) {
        row_weights[i] = pixel_weight(rows, i % pooling.height, first_y + i / pooling.height);
      }
      for (int i = thread; i < kTileWidth * pooling.width; i += kThreads) {
        column_weights[i] = pixel_weight(columns, i % pooling.width, first_x + i / pooling.width);
      }
      __syncthreads();
      if (channel < channels) {
        const T* bins = pooled + region * pooling.height * pooling.width * channels + channel;
        for (int x = 0; x < pooling.width; ++x) {
          const A column_weight = column_weights[warp * pooling.width + x];
          if (column_weight == A(0)) continue;
          for (int y = 0; y < pooling.height; ++y) {
            bool needed = false;
#pragma unroll
            for (int i = 0; i < kTileHeight; ++i) needed |= row_weights[i * pooling.height + y] != A(0);
            if (!needed) continue;
            const auto bin = packet_at<kVector>(bins + (int64_t{y} * pooling.width + x) * channels);
#pragma unroll
            for (int i = 0; i < kTileHeight; ++i) {
              const A weight = row_weights[i * pooling.height + y] * column_weight;
#pragma unroll
              for (int k = 0; k < kVector; ++k) {
                sums[i][k] = multiply_add(weight, widened(bin.values[k]), sums[i][k]);
              }
            }
          }
        }
      }
      __syncthreads();  // the weights are overwritten next
    }
  }
  const int x = first_x + warp;
  if (x >= width || channel >= channels) return;
  T* map = static_cast<T*>(gradients.data[level]) + image * height * width * channels + channel;
#pragma unroll
  for (int i = 0; i < kTileHeight; ++i) {
    const int y = first_y + i;
    if (y >= height) break;
    Packet<T, kVector> result;
#pragma unroll
    for (int k = 0; k < kVector; ++k) narrowed(sums[i][k], result.values[k]);
    *reinterpret_cast<Packet<T, kVector>*>(map + (int64_t{y} * width + x) * channels) = result;
  }
}

// ---- launchers

template <typename T, int kVector>
const char* pool(const FeatureMaps& maps, const Pooling& pooling, const void* regions, int64_t count, void* pooled,
                 void* stream) {
  using A = sum_t<T>;
  const size_t bins = pooling.height + pooling.width, with_table = bins * (kTableTaps * sizeof(Tap<A>) + sizeof(int));
  const int capacity = with_table <= kSharedBytes ? kTableTaps : 0;
  const size_t shared = capacity > 0 ? with_table : bins * sizeof(int);
  if (shared > kSharedBytes) return "output_size is too large for the GPU";
  return launch(&pool_regions<T, kVector>, dim3(static_cast<unsigned>(count)), dim3(kThreads), shared, stream, maps,
                pooling, static_cast<const A*>(regions), capacity, static_cast<T*>(pooled));
}

template <typename T, int kVector>
const char* gather(const FeatureMaps& gradients, const Pooling& pooling, const void* regions, int64_t count,
                   const void* pooled, void* stream) {
  using A = sum_t<T>;
  const size_t shared = (kTileHeight * pooling.height + kTileWidth * pooling.width) * sizeof(A);
  if (shared > kSharedBytes - 4096) return "output_size is too large for the GPU";
  constexpr int kChannels = 32 * kVector;
  for (int level = 0; level < pooling.levels; ++level) {
    const int64_t tiles = int64_t{1} * ((gradients.height[level] + kTileHeight - 1) / kTileHeight) *
                          ((gradients.width[level] + kTileWidth - 1) / kTileWidth);
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(gradients.images),
                    static_cast<unsigned>((gradients.channels + kChannels - 1) / kChannels));
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) continue;
    if (grid.y > 65535 || grid.z > 65535) return "more images or channels than fit one call (65535 images)";
    const char* failure = launch(&gather_gradient<T, kVector>, grid, dim3(kThreads), shared, stream, gradients, pooling,
                                 static_cast<const A*>(regions), count, static_cast<const T*>(pooled), level);
    if (failure != nullptr) return failure;
  }
  return nullptr;
}

}  // namespace

// Sixteen bytes at a time where the channels allow it; half precision exists only so (see packed_channels).
const char* launch_roi_align(ElementType type, const FeatureMaps& maps, const Pooling& pooling, const void* regions,
                             int64_t count, void* pooled, void* stream) {
  switch (type) {
    case ElementType::kFloat:
      return maps.channels % 4 == 0 ? pool<float, 4>(maps, pooling, regions, count, pooled, stream)
                                    : pool<float, 1>(maps, pooling, regions, count, pooled, stream);
    case ElementType::kDouble:
      return pool<double, 1>(maps, pooling, regions, count, pooled, stream);
    case ElementType::kHalf:
      return pool<__half, 8>(maps, pooling, regions, count, pooled, stream);
    case ElementType::kBFloat16:
      return pool<__nv_bfloat16, 8>(maps, pooling, regions, count, pooled, stream);
  }
  return "unknown type";
}

const char* launch_roi_align_backward(ElementType type, const FeatureMaps& gradients, const Pooling& pooling,
                                      const void* regions, int64_t count, const void* pooled_gradient, void* stream) {
  switch (type) {
    case ElementType::kFloat:
      return gradients.channels % 4 == 0
                 ? gather<float, 4>(gradients, pooling, regions, count, pooled_gradient, stream)
                 : gather<float, 1>(gradients, pooling, regions, count, pooled_gradient, stream);
    case ElementType::kDouble:
      return gather<double, 1>(gradients, pooling, regions, count, pooled_gradient, stream);
    case ElementType::kHalf:
      return gather<__half, 8>(gradients, pooling, regions, count, pooled_gradient, stream);
    case ElementType::kBFloat16:
      return gather<__nv_bfloat16, 8>(gradients, pooling, regions, count, pooled_gradient, stream);
  }
  return "unknown type";
}

}  // namespace mrcnn
