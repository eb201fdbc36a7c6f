// RoI max pooling over channels-last maps. The gradient is gathered, pixel by pixel, in the order of the regions and
// their bins, so there are no atomics and the sums have the bits of the CPU's.
#include "../cuda_launch.h"
#include "roi_pool.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
using sum_t = decltype(widened(T{}));

template <typename A>
struct RegionAxes {
  PixelAxis<A> rows, columns;
};

template <typename A>
__device__ __forceinline__ RegionAxes<A> axes_of(const A* roi, const RoiPoolCall& call) {
  const A scale = static_cast<A>(call.scale);
  // a map without pixels has no bin with a pixel
  const int height = call.width > 0 ? call.height : 0, width = call.height > 0 ? call.width : 0;
  return {pixel_axis<true>(roi[2], roi[4], scale, call.pooled_height, height),
          pixel_axis<true>(roi[1], roi[3], scale, call.pooled_width, width)};
}

// One thread = one number [region, y, x, channel]; neighbouring threads = neighbouring channels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pool_regions(const __grid_constant__ RoiPoolCall call, const T* __restrict__ map,
                 const sum_t<T>* __restrict__ regions, T* __restrict__ pooled, int32_t* __restrict__ places) {
  using A = sum_t<T>;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= call.regions * call.pooled_height * call.pooled_width * call.channels) return;
  const int64_t channel = index % call.channels, bin = index / call.channels;
  const int x = static_cast<int>(bin % call.pooled_width);
  const int y = static_cast<int>(bin / call.pooled_width % call.pooled_height);
  const A* roi = regions + 5 * (bin / (int64_t{1} * call.pooled_width * call.pooled_height));
  PixelRange rows{0, 0}, columns{0, 0};
  int64_t image = 0;
  if (roi[0] >= A(0) && roi[0] < static_cast<A>(call.images)) {
    const RegionAxes<A> axes = axes_of(roi, call);
    rows = pixel_range(axes.rows, y);
    columns = pixel_range(axes.columns, x);
    image = static_cast<int64_t>(roi[0]);
  }
  const T* plane = map + image * call.height * call.width * call.channels + channel;
  A best = rows.first >= rows.last || columns.first >= columns.last ? A(0) : static_cast<A>(kLowest);
  int place = -1;
  for (int row = rows.first; row < rows.last; ++row) {
    for (int column = columns.first; column < columns.last; ++column) {
      const int at = row * call.width + column;
      const A value = widened(plane[at * call.channels]);
      if (value > best) {
        best = value;
        place = at;
      }
    }
  }
  narrowed(best, pooled[index]);
  if (places != nullptr) places[index] = place;
}

//      8 pixels
//   +-+-+-+-+-+-+-+-+    One block = one tile of 4 x 8 pixels of one image and 32 of its channels: it finds the regions
//   the |0|1|2|3|4|5|6|7|    with pixels in the tile, 256 at a time and in their order, and adds up what their bins
//   send.
//   +-+-+-+-+-+-+-+-+    One warp = the 4 pixels of one column of the tile; one lane = one channel of them.
//   |0|1|...        |    Every pixel is written once, so the gradient needs no zeros beforehand.
constexpr int kTileHeight = 4, kTileWidth = 8;
static_assert(kTileWidth == kWarps, "one warp per column of the tile");

// True if any bin has one of `count` pixels from `first`: bins move one way, and each has a pixel or lies outside.
template <typename A>
__device__ __forceinline__ bool reaches(const PixelAxis<A>& axis, int bins, int first, int count) {
  return pixel_range(axis, 0).first < first + count && pixel_range(axis, bins - 1).last > first;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_gradient(const __grid_constant__ RoiPoolCall call, const T* __restrict__ gradient,
                    const sum_t<T>* __restrict__ regions, const int32_t* __restrict__ places, T* __restrict__ map) {
  using A = sum_t<T>;
  __shared__ int64_t found[kThreads];
  __shared__ int found_by_warp[kWarps];
  const int tiles_in_row = (call.width + kTileWidth - 1) / kTileWidth;
  const int first_x = static_cast<int>(blockIdx.x) % tiles_in_row * kTileWidth;
  const int first_y = static_cast<int>(blockIdx.x) / tiles_in_row * kTileHeight;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int64_t image = blockIdx.y, channel = int64_t{blockIdx.z} * 32 + lane;
  const int column = first_x + warp;

  A sums[kTileHeight] = {};
  for (int64_t first_region = 0; first_region < call.regions; first_region += kThreads) {
    const int64_t candidate = first_region + thread;
    bool reached = false;
    if (candidate < call.regions) {
      const A* roi = regions + 5 * candidate;
      if (roi[0] >= A(0) && roi[0] < static_cast<A>(call.images) && static_cast<int64_t>(roi[0]) == image) {
        const RegionAxes<A> axes = axes_of(roi, call);
        reached = reaches(axes.rows, call.pooled_height, first_y, kTileHeight) &&
                  reaches(axes.columns, call.pooled_width, first_x, kTileWidth);
      }
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

    for (int f = 0; f < total && column < call.width && channel < call.channels; ++f) {
      const RegionAxes<A> axes = axes_of(regions + 5 * found[f], call);
      for (int y = 0; y < call.pooled_height; ++y) {
        const PixelRange rows = pixel_range(axes.rows, y);
        if (rows.first >= first_y + kTileHeight || rows.last <= first_y) continue;
        for (int x = 0; x < call.pooled_width; ++x) {
          const PixelRange columns = pixel_range(axes.columns, x);
          if (column < columns.first || column >= columns.last) continue;
          const int64_t bin = (found[f] * call.pooled_height + y) * call.pooled_width + x;
          const int at = places[bin * call.channels + channel];
          const int row = at / call.width - first_y;
          if (at < 0 || at % call.width != column || row < 0 || row >= kTileHeight) continue;
          const A value = widened(gradient[bin * call.channels + channel]);
#pragma unroll
          for (int i = 0; i < kTileHeight; ++i) {
            if (i == row) sums[i] += value;
          }
        }
      }
    }
    __syncthreads();  // what was found is overwritten next
  }
  if (column >= call.width || channel >= call.channels) return;
#pragma unroll
  for (int i = 0; i < kTileHeight; ++i) {
    const int64_t row = first_y + i;
    if (row >= call.height) break;
    narrowed(sums[i], map[((image * call.height + row) * call.width + column) * call.channels + channel]);
  }
}

// ---- launchers

template <typename T>
const char* pool(const RoiPoolCall& call, const void* map, const void* regions, void* pooled, int32_t* places,
                 void* stream) {
  const int64_t count = call.regions * call.pooled_height * call.pooled_width * call.channels;
  if (count == 0) return nullptr;
  return launch(&pool_regions<T>, dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), dim3(kThreads), 0,
                stream, call, static_cast<const T*>(map), static_cast<const sum_t<T>*>(regions),
                static_cast<T*>(pooled), places);
}

template <typename T>
const char* gather(const RoiPoolCall& call, const void* gradient, const void* regions, const int32_t* places, void* map,
                   void* stream) {
  const int64_t tiles =
      int64_t{1} * ((call.height + kTileHeight - 1) / kTileHeight) * ((call.width + kTileWidth - 1) / kTileWidth);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(call.images),
                  static_cast<unsigned>((call.channels + 31) / 32));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return nullptr;
  if (grid.y > 65535 || grid.z > 65535) return "more images or channels than fit one call (65535 images)";
  return launch(&gather_gradient<T>, grid, dim3(kThreads), 0, stream, call, static_cast<const T*>(gradient),
                static_cast<const sum_t<T>*>(regions), places, static_cast<T*>(map));
}

}  // namespace

const char* launch_roi_pool(ElementType type, const RoiPoolCall& call, const void* map, const void* regions,
                            void* pooled, int32_t* places, void* stream) {
  switch (type) {
    case ElementType::kFloat:
      return pool<float>(call, map, regions, pooled, places, stream);
    case ElementType::kDouble:
      return pool<double>(call, map, regions, pooled, places, stream);
    case ElementType::kHalf:
      return pool<__half>(call, map, regions, pooled, places, stream);
    case ElementType::kBFloat16:
      return pool<__nv_bfloat16>(call, map, regions, pooled, places, stream);
  }
  return "unknown type";
}

const char* launch_roi_pool_backward(ElementType type, const RoiPoolCall& call, const void* gradient,
                                     const void* regions, const int32_t* places, void* map, void* stream) {
  switch (type) {
    case ElementType::kFloat:
      return gather<float>(call, gradient, regions, places, map, stream);
    case ElementType::kDouble:
      return gather<double>(call, gradient, regions, places, map, stream);
    case ElementType::kHalf:
      return gather<__half>(call, gradient, regions, places, map, stream);
    case ElementType::kBFloat16:
      return gather<__nv_bfloat16>(call, gradient, regions, places, map, stream);
  }
  return "unknown type";
}

}  // namespace mrcnn
