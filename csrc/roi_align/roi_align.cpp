// RoIAlign over one feature map or a pyramid of them: schema, checks, CPU kernels, host side of CUDA.
//
// Channels-last maps: forward, one piece of work is one region; backward, one slice of the channels of all maps.
// Contiguous maps: one piece of work is one channel, whose plane stays in the cache while all regions read from it or
// add to it. Gradients are never shared between threads, so there are no atomics, and every sum has the same order -
// the same bits - for any number of threads.
#include "roi_align.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "../common.h"
#include "mix.h"
#include "plan.h"

namespace mrcnn {
namespace {

template <typename T>
const T* as(const void* data) {
  return static_cast<const T*>(data);
}

// ---- channels last
// ---------------------------------------------------------------------------------------------------

template <typename T>
void pool_channels_last(const FeatureMaps& maps, const Pooling& pooling, const Plan<accumulator_t<T>>& plan,
                        T* pooled) {
  const auto mix = chosen_mix<false, T, T>();
  const int64_t channels = maps.channels;
  parallel_for(0, static_cast<int64_t>(plan.regions.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto& region = plan.regions[i];
      const int height = maps.height[region.level], width = maps.width[region.level];
      const T* map = as<T>(maps.data[region.level]) + region.image * height * width * channels;
      T* out = pooled + region.region * pooling.height * pooling.width * channels;
      for (int y = 0; y < pooling.height; ++y) {
        for (int x = 0; x < pooling.width; ++x, out += channels) {
          mix({region.rows.row(y), region.rows.count(y)}, {region.columns.row(x), region.columns.count(x)}, map,
              {width * channels, channels}, channels, out);
        }
      }
    }
  });
}

// Adds the gradient of all regions on one map of one image to `map`, for `count` channels from `first_channel`.
template <typename T, typename Out>
void scatter_slice(const Pooling& pooling, const Plan<accumulator_t<T>>& plan, int64_t begin, int64_t end,
                   const T* pooled, int64_t channels, int64_t first_channel, int64_t count, Out* map,
                   Strides map_strides) {
  const auto mix = chosen_mix<true, T, Out>();
  for (int64_t i = begin; i < end; ++i) {
    const auto& region = plan.regions[i];
    const T* source = pooled + region.region * pooling.height * pooling.width * channels + first_channel;
    for (int y = 0; y < region.rows.rows(); ++y) {
      if (region.rows.count(y) == 0) continue;
      Out* row = map + (region.rows.first + y) * map_strides.row;
      for (int x = 0; x < region.columns.rows(); ++x) {
        if (region.columns.count(x) == 0) continue;
        mix({region.rows.row(y), region.rows.count(y)}, {region.columns.row(x), region.columns.count(x)}, source,
            {pooling.width * channels, channels}, count, row + (region.columns.first + x) * map_strides.column);
      }
    }
  }
}

template <typename T>
void scatter_channels_last(const FeatureMaps& gradients, const Pooling& pooling, const Plan<accumulator_t<T>>& plan,
                           const T* pooled) {
  using A = accumulator_t<T>;
  const int64_t channels = gradients.channels, images = gradients.images;
  // A slice is a multiple of 64 bytes of float32, so that two threads never write to one cache line.
  constexpr int64_t kSlice = 16;
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
      const int64_t pixels = int64_t{1} * gradients.height[level] * gradients.width[level];
      for (int64_t image = 0; image < images; ++image) {
        const int64_t begin = plan.start(level, image, images), end = plan.start(level, image + 1, images);
        T* map = static_cast<T*>(gradients.data[level]) + image * pixels * channels;
        if constexpr (std::is_same_v<T, A>) {
          scatter_slice(pooling, plan, begin, end, pooled, channels, low, high - low, map + low,
                        {gradients.width[level] * channels, channels});
        } else {
          // Half precision can't hold the sum of many regions: float32 for a slice at a time, rounded once.
          for (int64_t c = low; c < high; c += kSlice) {
            const int64_t count = std::min(kSlice, high - c);
            sums.assign(pixels * count, A(0));
            scatter_slice(pooling, plan, begin, end, pooled, channels, c, count, sums.data(),
                          {gradients.width[level] * count, count});
            for (int64_t p = 0; p < pixels; ++p) {
              for (int64_t k = 0; k < count; ++k) map[p * channels + c + k] = static_cast<T>(sums[p * count + k]);
            }
          }
        }
      }
    }
  });
}

// ---- contiguous
// ------------------------------------------------------------------------------------------------------

// Compiled twice, plain and for processors with AVX2 and fused multiply-add; the compiler vectorises along x.
template <bool kFused, typename A>
inline __attribute__((always_inline)) A multiply_add(A a, A b, A c) {
  if constexpr (kFused) return std::is_same_v<A, float> ? __builtin_fmaf(a, b, c) : __builtin_fma(a, b, c);
  return a * b + c;
}

// One channel of one region: first the rows of pixels are summed into rows of bins, then these along x.
template <bool kFused, typename T, typename A>
inline __attribute__((always_inline)) void pool_plane(const T* plane, int width, const RegionPlan<A>& region, A* line,
                                                      T* out) {
  const int low = region.columns.low, span = region.columns.high - low;
  for (int y = 0; y < region.rows.rows(); ++y) {
    std::fill(line, line + span, A(0));
    for (int i = 0; i < region.rows.count(y); ++i) {
      const Tap<A> tap = region.rows.row(y)[i];
      const T* pixels = plane + int64_t{1} * tap.position * width + low;
      for (int x = 0; x < span; ++x) line[x] = multiply_add<kFused>(tap.weight, static_cast<A>(pixels[x]), line[x]);
    }
    for (int x = 0; x < region.columns.rows(); ++x) {
      A sum = 0;
      for (int j = 0; j < region.columns.count(x); ++j) {
        const Tap<A> tap = region.columns.row(x)[j];
        sum = multiply_add<kFused>(tap.weight, line[tap.position - low], sum);
      }
      *out++ = static_cast<T>(sum);
    }
  }
}

// The transpose: bins are spread along x into `lines` (one per row of bins), which are then added to the rows of
// pixels.
template <bool kFused, typename T, typename A>
inline __attribute__((always_inline)) void scatter_plane(const T* bins, const Pooling& pooling,
                                                         const RegionPlan<A>& region, A* lines, A* plane, int width) {
  const int span = region.columns.rows();
  for (int y = 0; y < pooling.height; ++y) {
    for (int x = 0; x < span; ++x) {
      A sum = 0;
      for (int j = 0; j < region.columns.count(x); ++j) {
        const Tap<A> tap = region.columns.row(x)[j];
        sum = multiply_add<kFused>(tap.weight, static_cast<A>(bins[y * pooling.width + tap.position]), sum);
      }
      lines[y * span + x] = sum;
    }
  }
  for (int y = 0; y < region.rows.rows(); ++y) {
    A* pixels = plane + int64_t{1} * (region.rows.first + y) * width + region.columns.first;
    for (int i = 0; i < region.rows.count(y); ++i) {
      const Tap<A> tap = region.rows.row(y)[i];
      const A* line = lines + tap.position * span;
      for (int x = 0; x < span; ++x) pixels[x] = multiply_add<kFused>(tap.weight, line[x], pixels[x]);
    }
  }
}

// What one thread needs beside the maps.
template <typename A>
struct Scratch {
  std::vector<A> lines, sums;
};

template <bool kFused, typename T, typename A>
inline __attribute__((always_inline)) void pool_channel(const FeatureMaps& maps, const Pooling& pooling,
                                                        const Plan<A>& plan, int64_t image, int64_t channel,
                                                        Scratch<A>& scratch, T* pooled) {
  const int64_t bins = int64_t{1} * pooling.height * pooling.width;
  for (int level = 0; level < pooling.levels; ++level) {
    const int width = maps.width[level];
    scratch.lines.resize(width);
    const T* plane = as<T>(maps.data[level]) + (image * maps.channels + channel) * maps.height[level] * width;
    const int64_t end = plan.start(level, image + 1, maps.images);
    for (int64_t i = plan.start(level, image, maps.images); i < end; ++i) {
      const RegionPlan<A>& region = plan.regions[i];
      pool_plane<kFused>(plane, width, region, scratch.lines.data(),
                         pooled + (region.region * maps.channels + channel) * bins);
    }
  }
}

template <bool kFused, typename T, typename A>
inline __attribute__((always_inline)) void scatter_channel(const FeatureMaps& gradients, const Pooling& pooling,
                                                           const Plan<A>& plan, int64_t image, int64_t channel,
                                                           Scratch<A>& scratch, const T* pooled) {
  const int64_t bins = int64_t{1} * pooling.height * pooling.width;
  for (int level = 0; level < pooling.levels; ++level) {
    const int width = gradients.width[level];
    const int64_t pixels = int64_t{1} * gradients.height[level] * width;
    scratch.lines.resize(int64_t{1} * pooling.height * width);
    T* plane = static_cast<T*>(gradients.data[level]) + (image * gradients.channels + channel) * pixels;
    A* sums;
    if constexpr (std::is_same_v<T, A>) {
      sums = plane;
      std::fill(sums, sums + pixels, A(0));
    } else {
      scratch.sums.assign(pixels, A(0));
      sums = scratch.sums.data();
    }
    const int64_t end = plan.start(level, image + 1, gradients.images);
    for (int64_t i = plan.start(level, image, gradients.images); i < end; ++i) {
      const RegionPlan<A>& region = plan.regions[i];
      scatter_plane<kFused>(pooled + (region.region * gradients.channels + channel) * bins, pooling, region,
                            scratch.lines.data(), sums, width);
    }
    if constexpr (!std::is_same_v<T, A>) {
      for (int64_t p = 0; p < pixels; ++p) plane[p] = static_cast<T>(sums[p]);
    }
  }
}

template <typename T, typename A>
void pool_channel_plain(const FeatureMaps& maps, const Pooling& pooling, const Plan<A>& plan, int64_t image,
                        int64_t channel, Scratch<A>& scratch, T* pooled) {
  pool_channel<false>(maps, pooling, plan, image, channel, scratch, pooled);
}

template <typename T, typename A>
void scatter_channel_plain(const FeatureMaps& maps, const Pooling& pooling, const Plan<A>& plan, int64_t image,
                           int64_t channel, Scratch<A>& scratch, const T* pooled) {
  scatter_channel<false>(maps, pooling, plan, image, channel, scratch, pooled);
}

#ifdef __x86_64__
template <typename T, typename A>
__attribute__((target("avx2,fma"))) void pool_channel_avx2(const FeatureMaps& maps, const Pooling& pooling,
                                                           const Plan<A>& plan, int64_t image, int64_t channel,
                                                           Scratch<A>& scratch, T* pooled) {
  pool_channel<true>(maps, pooling, plan, image, channel, scratch, pooled);
}

template <typename T, typename A>
__attribute__((target("avx2,fma"))) void scatter_channel_avx2(const FeatureMaps& maps, const Pooling& pooling,
                                                              const Plan<A>& plan, int64_t image, int64_t channel,
                                                              Scratch<A>& scratch, const T* pooled) {
  scatter_channel<true>(maps, pooling, plan, image, channel, scratch, pooled);
}
#else
template <typename T, typename A>
constexpr auto pool_channel_avx2 = &pool_channel_plain<T, A>;
template <typename T, typename A>
constexpr auto scatter_channel_avx2 = &scatter_channel_plain<T, A>;
#endif

// Calls body(image, channel, scratch) for every plane, in parallel.
template <typename A, typename Body>
void for_each_channel(const FeatureMaps& maps, const Body& body) {
  parallel_for(0, maps.images * maps.channels, 1, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch;
    // Images take turns, so that threads share the work even if one image holds most of the regions.
    for (int64_t i = begin; i < end; ++i) body(i % maps.images, i / maps.images, scratch);
  });
}

template <typename T>
void pool_contiguous(const FeatureMaps& maps, const Pooling& pooling, const Plan<accumulator_t<T>>& plan, T* pooled) {
  using A = accumulator_t<T>;
  const auto pool = has_avx2_fma() ? &pool_channel_avx2<T, A> : &pool_channel_plain<T, A>;
  for_each_channel<A>(maps, [&](int64_t image, int64_t channel, Scratch<A>& scratch) {
    pool(maps, pooling, plan, image, channel, scratch, pooled);
  });
}

template <typename T>
void scatter_contiguous(const FeatureMaps& gradients, const Pooling& pooling, const Plan<accumulator_t<T>>& plan,
                        const T* pooled) {
  using A = accumulator_t<T>;
  const auto scatter = has_avx2_fma() ? &scatter_channel_avx2<T, A> : &scatter_channel_plain<T, A>;
  for_each_channel<A>(gradients, [&](int64_t image, int64_t channel, Scratch<A>& scratch) {
    scatter(gradients, pooling, plan, image, channel, scratch, pooled);
  });
}

// ---- arguments
// -------------------------------------------------------------------------------------------------------

Pooling checked_pooling(int64_t height, int64_t width, int64_t sampling_ratio, bool aligned, double canonical_size,
                        int64_t canonical_level, const std::vector<double>& scales) {
  check(height > 0 && width > 0 && height < 32768 && width < 32768, "roi_align: output_size must be positive, got ",
        height, " x ", width);
  check(sampling_ratio < (1 << 24), "roi_align: sampling_ratio is too large: ", sampling_ratio);
  check(canonical_size > 0, "roi_align: canonical_size must be positive, got ", canonical_size);
  check(!scales.empty() && scales.size() <= kMaximumLevels, "roi_align: between 1 and ", kMaximumLevels,
        " feature maps, got ", scales.size());
  for (const double scale : scales) {
    check(scale > 0 && std::isfinite(scale), "roi_align: spatial_scale must be positive, got ", scale);
  }
  return {static_cast<int>(height),
          static_cast<int>(width),
          static_cast<int>(std::max<int64_t>(sampling_ratio, 0)),
          aligned,
          canonical_size,
          static_cast<int>(canonical_level),
          static_cast<int>(std::lround(-std::log2(scales[0]))),
          static_cast<int>(scales.size())};
}

void check_rois(const Tensor& rois, const Tensor& features) {
  check(rois.dim() == 2 && rois.size(1) == 5, "roi_align: boxes must be [R, 5] with the image index first, got ",
        ShapeOf{rois});
  check(is_floating(rois.scalar_type()), "roi_align: boxes must be floating point, got ", rois.scalar_type());
  check(rois.is_cuda() == features.is_cuda() && rois.get_device_index() == features.get_device_index(),
        "roi_align: boxes must be on the device of the features");
}

void check_features(const std::vector<Tensor>& features, const std::vector<double>& scales) {
  check(features.size() == scales.size(), "roi_align: one spatial_scale per feature map, got ", scales.size(), " for ",
        features.size(), " maps");
  for (size_t i = 0; i < features.size(); ++i) {
    const Tensor& map = features[i];
    check(map.dim() == 4, "roi_align: features[", i, "] must be [N, C, H, W], got ", ShapeOf{map});
    check(map.size(0) == features[0].size(0) && map.size(1) == features[0].size(1), "roi_align: features[", i,
          "] must have the images and channels of features[0], ", ShapeOf{features[0]}, ", got ", ShapeOf{map});
    check(map.scalar_type() == features[0].scalar_type(), "roi_align: features[", i, "] must be ",
          features[0].scalar_type(), " as features[0] is, got ", map.scalar_type());
    check(map.is_cuda() == features[0].is_cuda() && map.get_device_index() == features[0].get_device_index(),
          "roi_align: features[", i, "] must be on the device of features[0]");
    check(map.numel() == 0 || (map.size(2) < (1 << 24) && map.size(3) < (1 << 24)), "roi_align: features[", i,
          "] is too large: ", ShapeOf{map});
  }
  check(is_floating(features[0].scalar_type()), "roi_align: features must be floating point, got ",
        features[0].scalar_type());
}

// Box coordinates are computed in float32, or in float64 for float64 maps: half precision would move boxes by pixels.
Tensor comparable_rois(const Tensor& rois, ScalarType features) {
  return converted(rois, features == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

// Maps are taken as they lie in memory: all channels last, or all contiguous; what differs from the first is copied.
bool prefers_channels_last(const Tensor& map) {
  return is_channels_last(map) && !map.is_contiguous();
}

Tensor in_format(const Tensor& map, bool channels_last) {
  if (channels_last ? is_channels_last(map) : map.is_contiguous()) return map;
  return torch::stable::contiguous(map, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor allocated(const Tensor& like, int64_t n, int64_t channels, int64_t height, int64_t width, bool channels_last) {
  const int64_t sizes[] = {n, channels, height, width};
  return torch::stable::empty({sizes, 4}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

FeatureMaps described(const std::vector<Tensor>& maps, const std::vector<double>& scales) {
  FeatureMaps described{};
  for (size_t i = 0; i < maps.size(); ++i) {
    described.data[i] = const_cast<void*>(maps[i].const_data_ptr());
    described.height[i] = static_cast<int>(maps[i].size(2));
    described.width[i] = static_cast<int>(maps[i].size(3));
    described.scale[i] = scales[i];
  }
  described.images = maps[0].size(0);
  described.channels = maps[0].size(1);
  return described;
}

// Everything a call is about, checked and brought into one memory format.
struct Call {
  Pooling pooling;
  bool channels_last;
  Tensor rois;
  std::vector<Tensor> maps;
  FeatureMaps described;
};

// ---- forward
// ---------------------------------------------------------------------------------------------------------

Call forward_call(const std::vector<Tensor>& features, const Tensor& rois, const std::vector<double>& scales,
                  int64_t height, int64_t width, int64_t sampling_ratio, bool aligned, double canonical_size,
                  int64_t canonical_level, bool channels_last) {
  std::vector<Tensor> maps;
  for (const Tensor& map : features) maps.push_back(in_format(map, channels_last));
  return {checked_pooling(height, width, sampling_ratio, aligned, canonical_size, canonical_level, scales),
          channels_last, comparable_rois(rois, features[0].scalar_type()), maps, described(maps, scales)};
}

Tensor roi_align_cpu(const std::vector<Tensor>& features, const Tensor& rois, const std::vector<double>& scales,
                     int64_t height, int64_t width, int64_t sampling_ratio, bool aligned, double canonical_size,
                     int64_t canonical_level) {
  check_features(features, scales);
  check_rois(rois, features[0]);
  const Call call = forward_call(features, rois, scales, height, width, sampling_ratio, aligned, canonical_size,
                                 canonical_level, prefers_channels_last(features[0]));
  Tensor pooled = allocated(features[0], rois.size(0), call.described.channels, height, width, call.channels_last);
  THO_DISPATCH_V2(features[0].scalar_type(), "roi_align", AT_WRAP([&] {
                    using A = accumulator_t<scalar_t>;
                    const Plan<A> plan =
                        planned(call.rois.const_data_ptr<A>(), rois.size(0), call.described, call.pooling, false);
                    auto* out = static_cast<scalar_t*>(pooled.mutable_data_ptr());
                    if (call.channels_last) {
                      pool_channels_last<scalar_t>(call.described, call.pooling, plan, out);
                    } else {
                      pool_contiguous<scalar_t>(call.described, call.pooling, plan, out);
                    }
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return pooled;
}

// ---- backward
// --------------------------------------------------------------------------------------------------------

Call backward_call(const Tensor& gradient, const Tensor& rois, int64_t images, const std::vector<int64_t>& heights,
                   const std::vector<int64_t>& widths, const std::vector<double>& scales, int64_t sampling_ratio,
                   bool aligned, double canonical_size, int64_t canonical_level, bool channels_last) {
  check(gradient.dim() == 4 && is_floating(gradient.scalar_type()),
        "roi_align_backward: grad must be [R, C, h, w] and floating point, got ", ShapeOf{gradient});
  check_rois(rois, gradient);
  check(rois.size(0) == gradient.size(0), "roi_align_backward: grad must hold ", rois.size(0), " regions, got ",
        ShapeOf{gradient});
  check(heights.size() == scales.size() && widths.size() == scales.size(),
        "roi_align_backward: one height and width per spatial_scale");
  const Pooling pooling = checked_pooling(gradient.size(2), gradient.size(3), sampling_ratio, aligned, canonical_size,
                                          canonical_level, scales);
  std::vector<Tensor> maps;
  for (size_t i = 0; i < scales.size(); ++i) {
    maps.push_back(allocated(gradient, images, gradient.size(1), heights[i], widths[i], channels_last));
  }
  return {pooling, channels_last, comparable_rois(rois, gradient.scalar_type()), maps, described(maps, scales)};
}

std::vector<Tensor> roi_align_backward_cpu(const Tensor& gradient, const Tensor& rois, int64_t images,
                                           const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                                           const std::vector<double>& scales, int64_t sampling_ratio, bool aligned,
                                           double canonical_size, int64_t canonical_level, bool channels_last) {
  const Call call = backward_call(gradient, rois, images, heights, widths, scales, sampling_ratio, aligned,
                                  canonical_size, canonical_level, channels_last);
  const Tensor pooled = in_format(gradient, channels_last);
  THO_DISPATCH_V2(gradient.scalar_type(), "roi_align_backward", AT_WRAP([&] {
                    using A = accumulator_t<scalar_t>;
                    const Plan<A> plan =
                        planned(call.rois.const_data_ptr<A>(), rois.size(0), call.described, call.pooling, true);
                    const auto* bins = as<scalar_t>(pooled.const_data_ptr());
                    if (channels_last) {
                      scatter_channels_last<scalar_t>(call.described, call.pooling, plan, bins);
                    } else {
                      scatter_contiguous<scalar_t>(call.described, call.pooling, plan, bins);
                    }
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return call.maps;
}

// ---- CUDA
// ------------------------------------------------------------------------------------------------------------

#ifdef MRCNN_CUDA
ElementType element_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return ElementType::kDouble;
    case ScalarType::Half:
      return ElementType::kHalf;
    case ScalarType::BFloat16:
      return ElementType::kBFloat16;
    default:
      return ElementType::kFloat;
  }
}

// The CUDA kernels read and write channels last; contiguous maps are converted on the way in and out, which a device
// does at the speed of its memory.
Tensor roi_align_cuda(const std::vector<Tensor>& features, const Tensor& rois, const std::vector<double>& scales,
                      int64_t height, int64_t width, int64_t sampling_ratio, bool aligned, double canonical_size,
                      int64_t canonical_level) {
  check_features(features, scales);
  check_rois(rois, features[0]);
  const torch::stable::accelerator::DeviceGuard guard(features[0].get_device_index());
  const Call call = forward_call(features, rois, scales, height, width, sampling_ratio, aligned, canonical_size,
                                 canonical_level, true);
  const int64_t count = rois.size(0);
  Tensor pooled = allocated(features[0], count, call.described.channels, height, width, true);
  if (pooled.numel() > 0) {
    check_launch("roi_align", launch_roi_align(element_type(features[0].scalar_type()), call.described, call.pooling,
                                               call.rois.const_data_ptr(), count, pooled.mutable_data_ptr(),
                                               current_stream(pooled)));
  }
  return in_format(pooled, prefers_channels_last(features[0]));
}

std::vector<Tensor> roi_align_backward_cuda(const Tensor& gradient, const Tensor& rois, int64_t images,
                                            const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                                            const std::vector<double>& scales, int64_t sampling_ratio, bool aligned,
                                            double canonical_size, int64_t canonical_level, bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device_index());
  const Call call = backward_call(gradient, rois, images, heights, widths, scales, sampling_ratio, aligned,
                                  canonical_size, canonical_level, true);
  const Tensor pooled = in_format(gradient, true);
  check_launch("roi_align_backward", launch_roi_align_backward(element_type(gradient.scalar_type()), call.described,
                                                               call.pooling, call.rois.const_data_ptr(), rois.size(0),
                                                               pooled.const_data_ptr(), current_stream(gradient)));
  std::vector<Tensor> maps;
  for (const Tensor& map : call.maps) maps.push_back(in_format(map, channels_last));
  return maps;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "roi_align(Tensor[] features, Tensor rois, float[] spatial_scales, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned, float canonical_size, int canonical_level) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, SymInt images, SymInt[] heights, SymInt[] widths, "
      "float[] spatial_scales, int sampling_ratio, bool aligned, float canonical_size, int canonical_level, "
      "bool channels_last) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward_cpu));
}

#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align_cuda));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward_cuda));
}
#endif

}  // namespace mrcnn
