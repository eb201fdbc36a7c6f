#pragma once
// The CUDA kernels of ps_roi_align and ps_roi_pool. The gradient is gathered, pixel by pixel, in the order of the
// regions, so there are no atomics and every run gives the same bits.
#include "../cuda_launch.h"
#include "position_sensitive.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
using sum_t = decltype(widened(T{}));

template <typename A>
__device__ __forceinline__ bool lies_on(const A* roi, int64_t images) {
  return roi[0] >= A(0) && roi[0] < static_cast<A>(images);
}

// One thread = one number that comes out; neighbouring threads = neighbours in memory.
template <Bins kBins, typename T>
__global__ void __launch_bounds__(kThreads)
    pool_bins(const __grid_constant__ PositionSensitiveCall call, const T* __restrict__ map,
              const sum_t<T>* __restrict__ regions, T* __restrict__ pooled) {
  using A = sum_t<T>;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int bins = call.pooled_height * call.pooled_width;
  if (index >= call.regions * call.channels_out * bins) return;
  const bool channels_last = call.pooled_channel == 1 && call.pooled_bin != 1;
  const int64_t rest = index % (call.channels_out * bins);
  const int64_t channel = channels_last ? rest % call.channels_out : rest / bins;
  const int bin = static_cast<int>(channels_last ? rest / call.channels_out : rest % bins);
  const int y = bin / call.pooled_width, x = bin % call.pooled_width;
  const A* roi = regions + 5 * (index / (call.channels_out * bins));
  A sum = A(0);
  if (lies_on(roi, call.images)) {
    const auto axes = RegionBinAxes<kBins, A>::of(roi + 1, call);
    const T* plane = map + static_cast<int64_t>(roi[0]) * call.map_image + (channel * bins + bin) * call.map_channel;
    axes.rows.each(y, [&](int row, A row_weight) {
      axes.columns.each(x, [&](int column, A column_weight) {
        const A pixel = widened(plane[(int64_t{1} * row * call.width + column) * call.map_pixel]);
        sum += row_weight * column_weight * pixel;
      });
    });
    sum /= BinAxis<kBins, A>::share(axes.rows, y, axes.columns, x);
  }
  narrowed(sum, pooled[index]);
}

constexpr int kOut = 4;  // channels out whose planes one thread adds up: they have the same weights

template <Bins kBins, typename A>
struct FoundRegion {
  RegionBinAxes<kBins, A> axes;
  int64_t region;
  A share;
};

// One block = 256 pixels in a row of one bin's planes for kOut channels out of one image: it finds the regions whose
// bin has a pixel there, 256 at a time and in their order. One thread = one of these pixels in all kOut planes, which
// it writes once, so the gradient needs no zeros beforehand.
template <Bins kBins, typename T>
__global__ void __launch_bounds__(kThreads)
    gather_planes(const __grid_constant__ PositionSensitiveCall call, const T* __restrict__ gradient,
                  const sum_t<T>* __restrict__ regions, T* __restrict__ map) {
  using A = sum_t<T>;
  __shared__ int found_by_warp[kWarps];
  auto* found = static_cast<FoundRegion<kBins, A>*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int bins = call.pooled_height * call.pooled_width, bin = static_cast<int>(blockIdx.y) % bins;
  const int y = bin / call.pooled_width, x = bin % call.pooled_width;
  const int64_t image = blockIdx.z, first_channel = int64_t{blockIdx.y} / bins * kOut;
  const int64_t pixels = int64_t{1} * call.height * call.width;
  const int64_t first_pixel = int64_t{blockIdx.x} * kThreads, pixel = first_pixel + thread;
  const int64_t last_pixel = first_pixel + kThreads < pixels ? first_pixel + kThreads : pixels;
  const int top = static_cast<int>(first_pixel / call.width), bottom = static_cast<int>((last_pixel - 1) / call.width);
  const int row = static_cast<int>(pixel / call.width), column = static_cast<int>(pixel % call.width);

  A sums[kOut] = {};
  for (int64_t first_region = 0; first_region < call.regions; first_region += kThreads) {
    const int64_t candidate = first_region + thread;
    FoundRegion<kBins, A> mine{};
    bool reached = false;
    if (candidate < call.regions) {
      const A* roi = regions + 5 * candidate;
      if (lies_on(roi, call.images) && static_cast<int64_t>(roi[0]) == image) {
        mine.axes = RegionBinAxes<kBins, A>::of(roi + 1, call);
        const PixelRange rows = mine.axes.rows.reach(y), columns = mine.axes.columns.reach(x);
        reached = columns.first < columns.last && rows.first <= bottom && rows.last > top;
        mine.region = candidate;
        mine.share = BinAxis<kBins, A>::share(mine.axes.rows, y, mine.axes.columns, x);
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
    if (reached) found[place + __popc(votes & ((1u << lane) - 1))] = mine;
    __syncthreads();
    for (int f = 0; f < total && pixel < pixels; ++f) {
      const FoundRegion<kBins, A>& region = found[f];
      const A row_weight = region.axes.rows.weight(y, row);
      if (row_weight == A(0)) continue;
      const A weight = row_weight * region.axes.columns.weight(x, column);
      if (weight == A(0)) continue;
      const T* given = gradient + region.region * call.pooled_region + bin * call.pooled_bin;
#pragma unroll
      for (int k = 0; k < kOut; ++k) {
        if (first_channel + k >= call.channels_out) break;
        sums[k] += weight * (widened(given[(first_channel + k) * call.pooled_channel]) / region.share);
      }
    }
    __syncthreads();  // what was found is overwritten next
  }
  if (pixel >= pixels) return;
#pragma unroll
  for (int k = 0; k < kOut; ++k) {
    if (first_channel + k >= call.channels_out) break;
    narrowed(
        sums[k],
        map[image * call.map_image + ((first_channel + k) * bins + bin) * call.map_channel + pixel * call.map_pixel]);
  }
}

template <Bins kBins, typename T>
const char* pool(const PositionSensitiveCall& call, const void* map, const void* regions, void* pooled, void* stream) {
  const int64_t count = call.regions * call.channels_out * call.pooled_height * call.pooled_width;
  if (count == 0) return nullptr;
  return launch(&pool_bins<kBins, T>, dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), dim3(kThreads), 0,
                stream, call, static_cast<const T*>(map), static_cast<const sum_t<T>*>(regions),
                static_cast<T*>(pooled));
}

template <Bins kBins, typename T>
const char* gather(const PositionSensitiveCall& call, const void* gradient, const void* regions, void* map,
                   void* stream) {
  const int64_t pixels = int64_t{1} * call.height * call.width;
  const int64_t planes = (call.channels_out + kOut - 1) / kOut * call.pooled_height * call.pooled_width;
  if (pixels == 0 || planes == 0 || call.images == 0) return nullptr;
  if (planes > 65535 || call.images > 65535) return "more images or channels than fit one call (65535 of each)";
  const dim3 grid(static_cast<unsigned>((pixels + kThreads - 1) / kThreads), static_cast<unsigned>(planes),
                  static_cast<unsigned>(call.images));
  constexpr size_t kShared = kThreads * sizeof(FoundRegion<kBins, sum_t<T>>);
  static_assert(kShared + kWarps * sizeof(int) <= kSharedBytes, "found regions fit every device");
  return launch(&gather_planes<kBins, T>, grid, dim3(kThreads), kShared, stream, call, static_cast<const T*>(gradient),
                static_cast<const sum_t<T>*>(regions), static_cast<T*>(map));
}

}  // namespace

template <Bins kBins>
const char* launch_position_sensitive(ElementType type, const PositionSensitiveCall& call, const void* map,
                                      const void* regions, void* pooled, void* stream) {
  switch (type) {
    case ElementType::kFloat:
      return pool<kBins, float>(call, map, regions, pooled, stream);
    case ElementType::kDouble:
      return pool<kBins, double>(call, map, regions, pooled, stream);
    case ElementType::kHalf:
      return pool<kBins, __half>(call, map, regions, pooled, stream);
    case ElementType::kBFloat16:
      return pool<kBins, __nv_bfloat16>(call, map, regions, pooled, stream);
  }
  return "unknown type";
}

template <Bins kBins>
const char* launch_position_sensitive_backward(ElementType type, const PositionSensitiveCall& call,
                                               const void* gradient, const void* regions, void* map, void* stream) {
  switch (type) {
    case ElementType::kFloat:
      return gather<kBins, float>(call, gradient, regions, map, stream);
    case ElementType::kDouble:
      return gather<kBins, double>(call, gradient, regions, map, stream);
    case ElementType::kHalf:
      return gather<kBins, __half>(call, gradient, regions, map, stream);
    case ElementType::kBFloat16:
      return gather<kBins, __nv_bfloat16>(call, gradient, regions, map, stream);
  }
  return "unknown type";
}

}  // namespace mrcnn
