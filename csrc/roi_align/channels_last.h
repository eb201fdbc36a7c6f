#pragma once
// RoIAlign on the CPU for channels-last maps. Forward, one piece of work is one region; backward, one slice of the
// channels of all maps, so that no two threads ever add to the same number.
#include <algorithm>
#include <cstring>
#include <vector>

#include "mix.h"
#include "plan.h"

namespace mrcnn {

template <typename T>
void pool_channels_last(const FeatureMaps& maps, const Pooling& pooling, const Plan<accumulator_t<T>>& plan,
                        T* pooled) {
  const auto mix = chosen_mix<false, T, T>();
  const int64_t channels = maps.channels;
  parallel_for(0, static_cast<int64_t>(plan.regions.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto& region = plan.regions[i];
      const int64_t height = maps.height[region.level], width = maps.width[region.level];
      const T* map = static_cast<const T*>(maps.data[region.level]) + region.image * height * width * channels;
      T* out = pooled + region.region * pooling.height * pooling.width * channels;
      for (int y = 0; y < pooling.height; ++y) {
        for (int x = 0; x < pooling.width; ++x, out += channels) {
          mix(region.rows.row(y), region.columns.row(x), map, {width * channels, channels}, channels, out);
        }
      }
    }
  });
}

// Adds the gradients of regions [begin, end) of the plan, all on one map, for `count` channels from `first_channel`.
template <typename T, typename A>
void scatter_slice(const Pooling& pooling, const Plan<A>& plan, int64_t begin, int64_t end, const T* pooled,
                   int64_t channels, int64_t first_channel, int64_t count, A* map, Strides strides) {
  const auto mix = chosen_mix<true, T, A>();
  for (int64_t i = begin; i < end; ++i) {
    const auto& region = plan.regions[i];
    const T* source = pooled + region.region * pooling.height * pooling.width * channels + first_channel;
    for (int y = 0; y < region.rows.rows(); ++y) {
      if (region.rows.row(y).count == 0) continue;
      A* row = map + (region.rows.first + y) * strides.row;
      for (int x = 0; x < region.columns.rows(); ++x) {
        if (region.columns.row(x).count == 0) continue;
        mix(region.rows.row(y), region.columns.row(x), source, {pooling.width * channels, channels}, count,
            row + (region.columns.first + x) * strides.column);
      }
    }
  }
}

template <typename T>
void scatter_channels_last(const FeatureMaps& gradients, const Pooling& pooling, const Plan<accumulator_t<T>>& plan,
                           const T* pooled) {
  using A = accumulator_t<T>;
  const int64_t channels = gradients.channels, images = gradients.images;
  // Threads divide the channels by 64 bytes of float32, so that no two of them write to one cache line. Half precision
  // can't hold the sum of many regions: it is summed in float32, 64 channels at a time, and rounded once.
  constexpr int64_t kSlice = 16, kRounded = 64;
  if constexpr (std::is_same_v<T, A>) {
    for (int level = 0; level < pooling.levels; ++level) {
      const int64_t row = gradients.width[level] * channels;
      T* map = static_cast<T*>(gradients.data[level]);
      parallel_for(0, images * gradients.height[level], 8, [&](int64_t begin, int64_t end) {
        std::memset(map + begin * row, 0, (end - begin) * row * sizeof(T));
      });
    }
  }
  parallel_for(0, (channels + kSlice - 1) / kSlice, 1, [&](int64_t first, int64_t last) {
    const int64_t low = first * kSlice, high = std::min(last * kSlice, channels);
    std::vector<A> sums;
    for (int level = 0; level < pooling.levels; ++level) {
      const int64_t width = gradients.width[level], pixels = gradients.height[level] * width;
      for (int64_t image = 0; image < images; ++image) {
        const int64_t begin = plan.start(level, image, images), end = plan.start(level, image + 1, images);
        T* map = static_cast<T*>(gradients.data[level]) + image * pixels * channels;
        if constexpr (std::is_same_v<T, A>) {
          scatter_slice<T, A>(pooling, plan, begin, end, pooled, channels, low, high - low, map + low,
                              {width * channels, channels});
        } else {
          const auto narrow = chosen_narrow<T>();
          for (int64_t c = low; c < high; c += kRounded) {
            const int64_t count = std::min(kRounded, high - c);
            sums.assign(pixels * count, A(0));
            scatter_slice<T, A>(pooling, plan, begin, end, pooled, channels, c, count, sums.data(),
                                {width * count, count});
            for (int64_t p = 0; p < pixels; ++p) narrow(sums.data() + p * count, count, map + p * channels + c);
          }
        }
      }
    }
  });
}

}  // namespace mrcnn
