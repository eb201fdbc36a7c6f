#pragma once
// RoIAlign on the CPU for contiguous maps. One piece of work is a few channels of one image, whose planes stay in the
// cache while all regions read from them or, backward, add to them.
#include <algorithm>
#include <cstring>
#include <vector>

#include "../avx2.h"
#include "plan.h"

namespace mrcnn {

// Planes that are worked on together: the short loops over taps, whose ends no processor can predict, are run once for
// all.
constexpr int kPlanes = 4;

// The compiler's own vectors: the plain build and the one for AVX2 do the same operations and give the same bits.
template <typename A>
struct Vector {
  static constexpr int kSize = 32 / sizeof(A);
  typedef A type __attribute__((vector_size(32)));
};

// kCount channels of one region: first rows of pixels are summed into rows of bins (`lines`), then these along x.
template <int kCount, typename A>
inline __attribute__((always_inline)) void pool_planes(const A* planes, int64_t plane_size, int width,
                                                       const RegionPlan<A>& region, A* lines, A* pooled, int64_t bins) {
  constexpr int kSize = Vector<A>::kSize;
  // Whole vectors only, inside the row: the last one is moved back onto the row, and computes some sums a second time.
  const int span = std::max(region.columns.high - region.columns.low, std::min(kSize, width));
  const int low = std::min(region.columns.low, width - span);
  for (int y = 0; y < region.rows.rows(); ++y) {
    const Taps<A> taps = region.rows.row(y);
    if (span < kSize) {
      for (int k = 0; k < kCount; ++k) {
        for (int x = 0; x < span; ++x) {
          A sum = 0;
          for (const Tap<A>& tap : taps) {
            sum += tap.weight * planes[k * plane_size + int64_t{1} * tap.position * width + low + x];
          }
          lines[k * span + x] = sum;
        }
      }
    } else {
      for (int x = 0; x < span; x += kSize) {
        const int at = std::min(x, span - kSize);
        typename Vector<A>::type sums[kCount], pixels;
        for (int k = 0; k < kCount; ++k) sums[k] = typename Vector<A>::type{};
        for (const Tap<A>& tap : taps) {
          const A* from = planes + int64_t{1} * tap.position * width + low + at;
          for (int k = 0; k < kCount; ++k) {
            std::memcpy(&pixels, from + k * plane_size, sizeof(pixels));
            sums[k] += tap.weight * pixels;
          }
        }
        for (int k = 0; k < kCount; ++k) std::memcpy(lines + k * span + at, &sums[k], sizeof(sums[k]));
      }
    }
    for (int x = 0; x < region.columns.rows(); ++x, ++pooled) {
      A sums[kCount] = {};
      for (const Tap<A>& tap : region.columns.row(x)) {
        const A* line = lines + tap.position - low;
        for (int k = 0; k < kCount; ++k) sums[k] += tap.weight * line[k * span];
      }
      for (int k = 0; k < kCount; ++k) pooled[k * bins] = sums[k];
    }
  }
}

// The transpose: bins are spread along x into `lines` (one per row of bins), which are then added to the rows of
// pixels.
template <int kCount, typename A>
inline __attribute__((always_inline)) void scatter_planes(const A* pooled, int64_t bins, const Pooling& pooling,
                                                          const RegionPlan<A>& region, A* lines, A* planes,
                                                          int64_t plane_size, int width) {
  constexpr int kSize = Vector<A>::kSize;
  const int span = region.columns.rows(), block = span * pooling.height;
  for (int x = 0; x < span; ++x) {
    const Taps<A> taps = region.columns.row(x);
    for (int y = 0; y < pooling.height; ++y) {
      A sums[kCount] = {};
      for (const Tap<A>& tap : taps) {
        const A* bin = pooled + y * pooling.width + tap.position;
        for (int k = 0; k < kCount; ++k) sums[k] += tap.weight * bin[k * bins];
      }
      for (int k = 0; k < kCount; ++k) lines[k * block + y * span + x] = sums[k];
    }
  }
  for (int y = 0; y < region.rows.rows(); ++y) {
    A* pixels = planes + int64_t{1} * (region.rows.first + y) * width + region.columns.first;
    const Taps<A> taps = region.rows.row(y);
    int x = 0;
    for (; x + kSize <= span; x += kSize) {
      typename Vector<A>::type sums[kCount], line;
      for (int k = 0; k < kCount; ++k) std::memcpy(&sums[k], pixels + k * plane_size + x, sizeof(line));
      for (const Tap<A>& tap : taps) {
        for (int k = 0; k < kCount; ++k) {
          std::memcpy(&line, lines + k * block + tap.position * span + x, sizeof(line));
          sums[k] += tap.weight * line;
        }
      }
      for (int k = 0; k < kCount; ++k) std::memcpy(pixels + k * plane_size + x, &sums[k], sizeof(line));
    }
    for (; x < span; ++x) {
      for (int k = 0; k < kCount; ++k) {
        A sum = pixels[k * plane_size + x];
        for (const Tap<A>& tap : taps) sum += tap.weight * lines[k * block + tap.position * span + x];
        pixels[k * plane_size + x] = sum;
      }
    }
  }
}

// Both exist plain and for AVX2, for kPlanes planes and for the single ones left over.
template <typename A>
struct PlaneKernels {
  using Pool = void (*)(const A*, int64_t, int, const RegionPlan<A>&, A*, A*, int64_t);
  using Scatter = void (*)(const A*, int64_t, const Pooling&, const RegionPlan<A>&, A*, A*, int64_t, int);
  int count;
  Pool pool;
  Scatter scatter;
};

template <int kCount, typename A>
void pool_planes_plain(const A* planes, int64_t plane_size, int width, const RegionPlan<A>& region, A* lines, A* pooled,
                       int64_t bins) {
  pool_planes<kCount>(planes, plane_size, width, region, lines, pooled, bins);
}

template <int kCount, typename A>
void scatter_planes_plain(const A* pooled, int64_t bins, const Pooling& pooling, const RegionPlan<A>& region, A* lines,
                          A* planes, int64_t plane_size, int width) {
  scatter_planes<kCount>(pooled, bins, pooling, region, lines, planes, plane_size, width);
}

#ifdef __x86_64__
template <int kCount, typename A>
__attribute__((target("avx2"))) void pool_planes_avx2(const A* planes, int64_t plane_size, int width,
                                                      const RegionPlan<A>& region, A* lines, A* pooled, int64_t bins) {
  pool_planes<kCount>(planes, plane_size, width, region, lines, pooled, bins);
}

template <int kCount, typename A>
__attribute__((target("avx2"))) void scatter_planes_avx2(const A* pooled, int64_t bins, const Pooling& pooling,
                                                         const RegionPlan<A>& region, A* lines, A* planes,
                                                         int64_t plane_size, int width) {
  scatter_planes<kCount>(pooled, bins, pooling, region, lines, planes, plane_size, width);
}
#endif

template <int kCount, typename A>
PlaneKernels<A> plane_kernels() {
#ifdef __x86_64__
  if (has_avx2()) return {kCount, &pool_planes_avx2<kCount, A>, &scatter_planes_avx2<kCount, A>};
#endif
  return {kCount, &pool_planes_plain<kCount, A>, &scatter_planes_plain<kCount, A>};
}

// Calls body(image, channel, kernels, scratch) for all channels of all images, in parallel.
template <typename A>
struct Scratch {
  std::vector<A> lines, planes, bins;
};

template <typename A, typename Body>
void for_each_channel(const FeatureMaps& maps, const Body& body) {
  const PlaneKernels<A> several = plane_kernels<kPlanes, A>(), single = plane_kernels<1, A>();
  const int64_t groups = (maps.channels + kPlanes - 1) / kPlanes;
  parallel_for(0, maps.images * groups, 1, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch;
    for (int64_t i = begin; i < end; ++i) {
      // Images take turns, so that threads share the work even if one image holds most of the regions.
      const int64_t image = i % maps.images, channel = i / maps.images * kPlanes;
      if (channel + kPlanes <= maps.channels) {
        body(image, channel, several, scratch);
      } else {
        for (int64_t c = channel; c < maps.channels; ++c) body(image, c, single, scratch);
      }
    }
  });
}

// Copies numbers to where they are worked on: half precision becomes float32.
template <typename T>
void stage(const T* from, int64_t count, accumulator_t<T>* to) {
  if constexpr (std::is_same_v<T, accumulator_t<T>>) {
    std::memcpy(to, from, count * sizeof(T));
  } else {
    chosen_widen<T>()(from, count, to);
  }
}

template <typename T>
void pool_contiguous(const Order<accumulator_t<T>>& order, T* pooled) {
  using A = accumulator_t<T>;
  const FeatureMaps& maps = order.maps;
  const Pooling& pooling = order.pooling;
  const auto plans = planned(order, false);
  constexpr bool kSame = std::is_same_v<T, A>;
  const int64_t bins = int64_t{1} * pooling.height * pooling.width;
  for_each_channel<A>(maps, [&](int64_t image, int64_t channel, const PlaneKernels<A>& kernels, Scratch<A>& scratch) {
    for (int level = 0; level < pooling.levels; ++level) {
      const RegionPlan<A>* region = plans.data() + order.start(level, image);
      const RegionPlan<A>* end = plans.data() + order.start(level, image + 1);
      if (region == end) continue;
      const int width = maps.width[level];
      const int64_t plane_size = int64_t{1} * maps.height[level] * width;
      const T* source = static_cast<const T*>(maps.data[level]) + (image * maps.channels + channel) * plane_size;
      // Reading the rows once from end to end into the cache is faster than fetching the regions' short pieces of rows.
      int low = maps.height[level], high = 0;
      for (const RegionPlan<A>* r = region; r < end; ++r) {
        low = std::min(low, r->rows.low);
        high = std::max(high, r->rows.high);
      }
      scratch.planes.resize(kernels.count * plane_size);
      A* planes = scratch.planes.data();
      for (int k = 0; k < kernels.count && low < high; ++k) {
        const int64_t first = k * plane_size + int64_t{1} * low * width;
        stage(source + first, int64_t{1} * (high - low) * width, planes + first);
      }
      scratch.lines.resize(int64_t{1} * kernels.count * width);
      if (!kSame) scratch.bins.resize(kernels.count * bins);
      for (; region < end; ++region) {
        T* out = pooled + (region->region * maps.channels + channel) * bins;
        if constexpr (kSame) {
          kernels.pool(planes, plane_size, width, *region, scratch.lines.data(), out, bins);
        } else {
          kernels.pool(planes, plane_size, width, *region, scratch.lines.data(), scratch.bins.data(), bins);
          chosen_narrow<T>()(scratch.bins.data(), kernels.count * bins, out);
        }
      }
    }
  });
}

template <typename T>
void scatter_contiguous(const Order<accumulator_t<T>>& order, const T* pooled) {
  using A = accumulator_t<T>;
  const FeatureMaps& gradients = order.maps;
  const Pooling& pooling = order.pooling;
  const auto plans = planned(order, true);
  constexpr bool kSame = std::is_same_v<T, A>;
  const int64_t bins = int64_t{1} * pooling.height * pooling.width;
  for_each_channel<A>(gradients, [&](int64_t image, int64_t channel, const PlaneKernels<A>& kernels,
                                     Scratch<A>& scratch) {
    for (int level = 0; level < pooling.levels; ++level) {
      const RegionPlan<A>* region = plans.data() + order.start(level, image);
      const RegionPlan<A>* end = plans.data() + order.start(level, image + 1);
      const int width = gradients.width[level];
      const int64_t plane_size = int64_t{1} * gradients.height[level] * width, size = kernels.count * plane_size;
      T* target = static_cast<T*>(gradients.data[level]) + (image * gradients.channels + channel) * plane_size;
      A* planes;
      if constexpr (kSame) {
        planes = target;
      } else {
        // Half precision can't hold the sum of many regions: it is summed in float32 and rounded once.
        scratch.planes.resize(size);
        scratch.bins.resize(kernels.count * bins);
        planes = scratch.planes.data();
      }
      std::fill(planes, planes + size, A(0));
      scratch.lines.resize(int64_t{1} * kernels.count * pooling.height * width);
      for (; region < end; ++region) {
        const T* source = pooled + (region->region * gradients.channels + channel) * bins;
        if constexpr (kSame) {
          kernels.scatter(source, bins, pooling, *region, scratch.lines.data(), planes, plane_size, width);
        } else {
          stage(source, kernels.count * bins, scratch.bins.data());
          kernels.scatter(scratch.bins.data(), bins, pooling, *region, scratch.lines.data(), planes, plane_size, width);
        }
      }
      if constexpr (!kSame) chosen_narrow<T>()(planes, size, target);
    }
  });
}

}  // namespace mrcnn
