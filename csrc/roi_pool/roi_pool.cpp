// RoI max pooling: schema, checks, CPU kernels, host side of CUDA.
//
// One piece of work is a few channels of one image, side by side in a vector (see lanes.h), for all regions. Gradients
// are never shared between threads and are added region by region, bin by bin - torchvision's order, so the sums have
// its bits, for any number of threads.
#include "roi_pool.h"

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../common.h"
#include "../lanes.h"
#include "../regions.h"
#include "../stream.h"

namespace mrcnn {
namespace {

// ---- regions

struct RegionBins {
  const PixelRange *rows, *columns;
};

// Every region's bins along both axes.
template <typename A>
struct Plan {
  ByImage regions;
  std::vector<PixelRange> ranges;
  int per_region, pooled_height;

  Plan(const A* rois, const RoiPoolCall& call)
      : regions(by_image("roi_pool", rois, call.regions, call.images)),
        ranges(call.regions * (call.pooled_height + call.pooled_width)),
        per_region(call.pooled_height + call.pooled_width),
        pooled_height(call.pooled_height) {
    // a map without pixels has no bin with a pixel
    const int height = call.width > 0 ? call.height : 0, width = call.height > 0 ? call.width : 0;
    for (int64_t r = 0; r < call.regions; ++r) {
      const A *roi = rois + 5 * r, scale = static_cast<A>(call.scale);
      auto y = pixel_axis<true>(roi[2], roi[4], scale, call.pooled_height, height);
      auto x = pixel_axis<true>(roi[1], roi[3], scale, call.pooled_width, width);
      PixelRange* range = ranges.data() + r * per_region;
      for (int bin = 0; bin < call.pooled_height; ++bin) *range++ = pixel_range(y, bin);
      for (int bin = 0; bin < call.pooled_width; ++bin) *range++ = pixel_range(x, bin);
    }
  }

  RegionBins of(int64_t region) const {
    const PixelRange* rows = ranges.data() + region * per_region;
    return {rows, rows + pooled_height};
  }
};

// ---- forward

constexpr int kVectors = 2;  // per pixel: enough independent comparisons to keep a processor busy
template <typename A>
constexpr int kLanes = kVectors * LaneVector<A>::kSize;

// The largest number of every bin of a region, and its place if kWithPlaces: the first in a row, and the first row, of
// those that are equal. NaN is never larger.
template <bool kWithPlaces, typename A>
inline __attribute__((always_inline)) void pool_region(const A* lanes, int width, RegionBins bins, int pooled_height,
                                                       int pooled_width, A* values, int32_t* places) {
  using Vector = typename LaneVector<A>::type;
  using Places = decltype(Vector{} > Vector{});
  using Place = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  constexpr int kSize = LaneVector<A>::kSize;
  for (int y = 0; y < pooled_height; ++y) {
    const PixelRange rows = bins.rows[y];
    for (int x = 0; x < pooled_width; ++x, values += kLanes<A>) {
      const PixelRange columns = bins.columns[x];
      const bool empty = rows.first >= rows.last || columns.first >= columns.last;
      Vector best[kVectors], pixel;
      Places place[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        best[v] = Vector{} + (empty ? A(0) : static_cast<A>(kLowest));
        place[v] = Places{} - 1;
      }
      for (int row = rows.first; row < rows.last; ++row) {
        const int64_t first = int64_t{1} * row * width + columns.first;
        const A* from = lanes + first * kLanes<A>;
        Places at = Places{} + static_cast<Place>(first);
        for (int column = columns.first; column < columns.last; ++column, from += kLanes<A>) {
          for (int v = 0; v < kVectors; ++v) {
            std::memcpy(&pixel, from + v * kSize, sizeof(pixel));
            const Places larger = pixel > best[v];
            best[v] = larger ? pixel : best[v];
            if (kWithPlaces) place[v] = larger ? at : place[v];
          }
          at += 1;
        }
      }
      std::memcpy(values, best, sizeof(best));
      if (kWithPlaces) {
        if constexpr (sizeof(A) == sizeof(int32_t)) {
          std::memcpy(places, place, sizeof(place));
        } else {
          for (int v = 0; v < kVectors; ++v) {
            for (int k = 0; k < kSize; ++k) places[v * kSize + k] = static_cast<int32_t>(place[v][k]);
          }
        }
        places += kLanes<A>;
      }
    }
  }
}

template <typename A>
using PoolRegion = void (*)(const A*, int, RegionBins, int, int, A*, int32_t*);

template <bool kWithPlaces, typename A>
void pool_region_plain(const A* lanes, int width, RegionBins bins, int pooled_height, int pooled_width, A* values,
                       int32_t* places) {
  pool_region<kWithPlaces>(lanes, width, bins, pooled_height, pooled_width, values, places);
}

#ifdef __x86_64__
template <bool kWithPlaces, typename A>
__attribute__((target("avx2"))) void pool_region_avx2(const A* lanes, int width, RegionBins bins, int pooled_height,
                                                      int pooled_width, A* values, int32_t* places) {
  pool_region<kWithPlaces>(lanes, width, bins, pooled_height, pooled_width, values, places);
}
#endif

template <typename A>
PoolRegion<A> chosen_pool_region(bool with_places) {
#ifdef __x86_64__
  if (has_avx2()) return with_places ? &pool_region_avx2<true, A> : &pool_region_avx2<false, A>;
#endif
  return with_places ? &pool_region_plain<true, A> : &pool_region_plain<false, A>;
}

// Calls body(image, first channel, channels) for all channels of all images, in parallel, with a scratch of its own.
template <typename Scratch, typename Body>
void for_each_group(const RoiPoolCall& call, int lanes, const Body& body) {
  const int64_t groups = (call.channels + lanes - 1) / lanes;
  parallel_for(0, call.images * groups, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t i = begin; i < end; ++i) {
      // Images take turns, so that threads share the work even if one image holds most of the regions.
      const int64_t channel = i / call.images * lanes;
      body(i % call.images, channel, static_cast<int>(std::min<int64_t>(lanes, call.channels - channel)), scratch);
    }
  });
}

LaneStrides strides_of(int64_t channels, int64_t places, bool channels_last) {
  return channels_last ? LaneStrides{channels, 1} : LaneStrides{1, places};
}

// Whether the lanes of a bin, and their places, are whole lines of a large result.
template <typename T>
bool is_streamed(const RoiPoolCall& call, bool channels_last, const T* pooled, const int32_t* places) {
  constexpr bool kWhole = std::is_same_v<T, float> && kLanes<float> * sizeof(float) == kStreamedLine;
  const int64_t bytes = call.regions * call.channels * call.pooled_height * call.pooled_width * int64_t{sizeof(T)};
  const auto begins_line = [](const void* result) { return reinterpret_cast<uintptr_t>(result) % kStreamedLine == 0; };
  return kWhole && channels_last && call.channels % kLanes<float> == 0 && bytes >= kStreamedBytes &&
         begins_line(pooled) && begins_line(places);
}

// A result for each lane of each bin, to where they belong.
template <int kLanes, typename A, typename T>
void put_bins(const A* lanes, LaneStrides strides, int bins, int used, bool streamed, T* to) {
  if (!streamed) return scatter_lanes<kLanes>(lanes, strides, bins, used, to);
  for (int bin = 0; bin < bins; ++bin) stream_line(to + bin * strides.pixel, lanes + bin * kLanes);
}

template <typename A>
struct PoolScratch {
  std::vector<A> lanes, values;
  std::vector<int32_t> places;
};

template <typename T>
void pool(const RoiPoolCall& call, const T* map, const accumulator_t<T>* rois, bool channels_last, T* pooled,
          int32_t* places) {
  using A = accumulator_t<T>;
  const Plan<A> plan(rois, call);
  const auto kernel = chosen_pool_region<A>(places != nullptr);
  const int64_t pixels = int64_t{1} * call.height * call.width;
  const int bins = call.pooled_height * call.pooled_width;
  const bool streamed = is_streamed(call, channels_last, pooled, places);
  for_each_group<PoolScratch<A>>(call, kLanes<A>, [&](int64_t image, int64_t channel, int used, auto& scratch) {
    const int64_t begin = plan.regions.starts[image], end = plan.regions.starts[image + 1];
    if (begin == end) return;
    scratch.lanes.resize(pixels * kLanes<A>);
    scratch.values.resize(int64_t{1} * bins * kLanes<A>);
    if (places != nullptr) scratch.places.resize(scratch.values.size());
    const LaneStrides from = strides_of(call.channels, pixels, channels_last);
    gather_lanes<kLanes<A>>(map + image * call.channels * pixels + channel * from.lane, from, pixels, used,
                            scratch.lanes.data());
    const LaneStrides to = strides_of(call.channels, bins, channels_last);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t region = plan.regions.order[i], out = region * call.channels * bins + channel * to.lane;
      kernel(scratch.lanes.data(), call.width, plan.of(region), call.pooled_height, call.pooled_width,
             scratch.values.data(), scratch.places.data());
      put_bins<kLanes<A>>(scratch.values.data(), to, bins, used, streamed, pooled + out);
      if (places != nullptr) put_bins<kLanes<A>>(scratch.places.data(), to, bins, used, streamed, places + out);
    }
    if (streamed) finish_streaming();
  });
}

RoiPoolCall call_of(int64_t images, int64_t channels, int64_t height, int64_t width, const Tensor& rois,
                    int64_t pooled_height, int64_t pooled_width, double spatial_scale) {
  return {images,
          channels,
          rois.size(0),
          static_cast<int>(height),
          static_cast<int>(width),
          static_cast<int>(pooled_height),
          static_cast<int>(pooled_width),
          spatial_scale};
}

RoiPoolCall checked_call(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t pooled_height,
                         int64_t pooled_width) {
  check_map("roi_pool", input);
  check_pooling("roi_pool", pooled_height, pooled_width, spatial_scale);
  check_rois("roi_pool", rois, input);
  return call_of(input.size(0), input.size(1), input.size(2), input.size(3), rois, pooled_height, pooled_width,
                 spatial_scale);
}

// The pooled values and, if asked for, where on its map each was found, which is what a gradient needs.
std::tuple<Tensor, Tensor> allocated_results(const Tensor& input, const RoiPoolCall& call, bool with_places,
                                             bool channels_last) {
  return {allocated(input, input.scalar_type(), call.regions, call.channels, call.pooled_height, call.pooled_width,
                    channels_last),
          allocated(input, ScalarType::Int, with_places ? call.regions : 0, call.channels, call.pooled_height,
                    call.pooled_width, channels_last)};
}

std::tuple<Tensor, Tensor> roi_pool_cpu(const Tensor& input, const Tensor& rois, double spatial_scale,
                                        int64_t pooled_height, int64_t pooled_width, bool with_places) {
  const RoiPoolCall call = checked_call(input, rois, spatial_scale, pooled_height, pooled_width);
  const bool channels_last = prefers_channels_last(input);
  const Tensor map = in_format(input, channels_last), boxes = comparable_rois(rois, input.scalar_type());
  auto [pooled, places] = allocated_results(input, call, with_places, channels_last);
  auto* found = with_places ? places.mutable_data_ptr<int32_t>() : nullptr;
  THO_DISPATCH_V2(input.scalar_type(), "roi_pool", AT_WRAP([&] {
                    pool(call, static_cast<const scalar_t*>(map.const_data_ptr()),
                         boxes.const_data_ptr<accumulator_t<scalar_t>>(), channels_last,
                         static_cast<scalar_t*>(pooled.mutable_data_ptr()), found);
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return {pooled, places};
}

// ---- backward

constexpr int64_t kPiece = 16;  // channels in 64 bytes of float32: no two threads write to one cache line
constexpr int64_t kBinsAhead = 4;

// Adds the gradients of the regions of one image to where the numbers were found, for `used` channels from `channel`.
// `sums` holds these channels of a map, `row` elements from pixel to pixel or from plane to plane.
template <bool kChannelsLast, typename T, typename A>
void scatter_image(const RoiPoolCall& call, const ByImage& regions, int64_t image, const T* gradient,
                   const int32_t* places, int64_t channel, int64_t used, A* sums, int64_t row) {
  const int64_t bins = int64_t{1} * call.pooled_height * call.pooled_width;
  const auto pixels = static_cast<uint32_t>(int64_t{1} * call.height * call.width);
  for (int64_t i = regions.starts[image]; i < regions.starts[image + 1]; ++i) {
    const int64_t offset = regions.order[i] * call.channels * bins + channel * (kChannelsLast ? 1 : bins);
    const T* given = gradient + offset;
    const int32_t* place = places + offset;
    if (kChannelsLast) {
      for (int64_t bin = 0; bin < bins; ++bin, given += call.channels, place += call.channels) {
        // A processor's own prefetching follows whole rows, not every second piece of them. Past the end of the tensor
        // a prefetch does nothing.
        for (int64_t k = 0; used < call.channels && k < used; k += kPiece) {
          __builtin_prefetch(given + kBinsAhead * call.channels + k);
          __builtin_prefetch(place + kBinsAhead * call.channels + k);
        }
        for (int64_t k = 0; k < used; ++k) {
          const auto at = static_cast<uint32_t>(place[k]);
          if (at < pixels) sums[at * row + k] += static_cast<A>(given[k]);  // -1 is above all of them
        }
      }
    } else {
      A* plane = sums;
      for (int64_t k = 0; k < used; ++k, given += bins, place += bins, plane += row) {
        for (int64_t bin = 0; bin < bins; ++bin) {
          const auto at = static_cast<uint32_t>(place[bin]);
          if (at < pixels) plane[at] += static_cast<A>(given[bin]);
        }
      }
    }
  }
}

// `used` channels of one image: `map` begins at the first of them.
template <bool kChannelsLast, typename T>
void scatter_slice(const RoiPoolCall& call, const ByImage& regions, int64_t image, const T* gradient,
                   const int32_t* places, int64_t channel, int64_t used, T* map) {
  using A = accumulator_t<T>;
  const int64_t pixels = int64_t{1} * call.height * call.width;
  // What lies together: the slice of each pixel, or the planes one after the other.
  const int64_t rows = kChannelsLast ? pixels : 1, length = kChannelsLast ? used : used * pixels;
  if constexpr (std::is_same_v<T, A>) {
    for (int64_t p = 0; p < rows; ++p) std::fill_n(map + p * call.channels, length, A(0));
    scatter_image<kChannelsLast>(call, regions, image, gradient, places, channel, used, map,
                                 kChannelsLast ? call.channels : pixels);
  } else {
    // Half precision can't hold the sum of many regions.
    std::vector<A> sums(used * pixels);
    scatter_image<kChannelsLast>(call, regions, image, gradient, places, channel, used, sums.data(),
                                 kChannelsLast ? used : pixels);
    for (int64_t p = 0; p < rows; ++p) narrow_or_copy(sums.data() + p * used, length, map + p * call.channels);
  }
}

template <typename T>
void scatter(const RoiPoolCall& call, const T* gradient, const accumulator_t<T>* rois, const int32_t* places,
             bool channels_last, T* map) {
  const ByImage regions = by_image("roi_pool_backward", rois, call.regions, call.images);
  const int64_t pixels = int64_t{1} * call.height * call.width;
  if (!channels_last) {
    // Few planes at a time stay in the cache.
    constexpr int kPlanes = 4;
    for_each_group<int>(call, kPlanes, [&](int64_t image, int64_t channel, int used, int&) {
      T* planes = map + (image * call.channels + channel) * pixels;
      scatter_slice<false>(call, regions, image, gradient, places, channel, used, planes);
    });
    return;
  }
  // Each thread takes as many neighbouring channels as it can: gradients and places are then read in the order in which
  // they lie in memory.
  parallel_for(0, (call.channels + kPiece - 1) / kPiece, 1, [&](int64_t first, int64_t last) {
    const int64_t channel = first * kPiece, used = std::min(last * kPiece, call.channels) - channel;
    for (int64_t image = 0; image < call.images; ++image) {
      T* slice = map + image * call.channels * pixels + channel;
      scatter_slice<true>(call, regions, image, gradient, places, channel, used, slice);
    }
  });
}

RoiPoolCall checked_backward_call(const Tensor& gradient, const Tensor& rois, const Tensor& places,
                                  double spatial_scale, int64_t images, int64_t height, int64_t width) {
  check(gradient.dim() == 4 && is_floating(gradient.scalar_type()),
        "roi_pool_backward: grad must be [R, C, h, w] and floating point, got ", ShapeOf{gradient});
  check_rois("roi_pool_backward", rois, gradient);
  check(rois.size(0) == gradient.size(0), "roi_pool_backward: grad must hold ", rois.size(0), " regions, got ",
        ShapeOf{gradient});
  bool same = places.dim() == 4 && places.scalar_type() == ScalarType::Int && places.is_cuda() == gradient.is_cuda();
  for (int64_t d = 0; same && d < 4; ++d) same = places.size(d) == gradient.size(d);
  check(same, "roi_pool_backward: places must be int32 ", ShapeOf{gradient}, " as grad is, got ", ShapeOf{places});
  return call_of(images, gradient.size(1), height, width, rois, gradient.size(2), gradient.size(3), spatial_scale);
}

Tensor roi_pool_backward_cpu(const Tensor& gradient, const Tensor& rois, const Tensor& places, double spatial_scale,
                             int64_t images, int64_t height, int64_t width, bool channels_last) {
  const RoiPoolCall call = checked_backward_call(gradient, rois, places, spatial_scale, images, height, width);
  const Tensor given = in_format(gradient, channels_last), found = in_format(places, channels_last);
  const Tensor boxes = comparable_rois(rois, gradient.scalar_type());
  Tensor map = allocated(gradient, gradient.scalar_type(), images, call.channels, height, width, channels_last);
  THO_DISPATCH_V2(gradient.scalar_type(), "roi_pool_backward", AT_WRAP([&] {
                    scatter(call, static_cast<const scalar_t*>(given.const_data_ptr()),
                            boxes.const_data_ptr<accumulator_t<scalar_t>>(), found.const_data_ptr<int32_t>(),
                            channels_last, static_cast<scalar_t*>(map.mutable_data_ptr()));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return map;
}

// ---- CUDA

#ifdef MRCNN_CUDA
// The CUDA kernels read and write channels last; contiguous maps are converted on the way in and out, which a device
// does at the speed of its memory.
std::tuple<Tensor, Tensor> roi_pool_cuda(const Tensor& input, const Tensor& rois, double spatial_scale,
                                         int64_t pooled_height, int64_t pooled_width, bool with_places) {
  const RoiPoolCall call = checked_call(input, rois, spatial_scale, pooled_height, pooled_width);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor map = in_format(input, true), boxes = comparable_rois(rois, input.scalar_type());
  auto [pooled, places] = allocated_results(input, call, with_places, true);
  if (pooled.numel() > 0) {
    check_launch("roi_pool",
                 launch_roi_pool(element_type(input.scalar_type()), call, map.const_data_ptr(), boxes.const_data_ptr(),
                                 pooled.mutable_data_ptr(), with_places ? places.mutable_data_ptr<int32_t>() : nullptr,
                                 current_stream(input)));
  }
  const bool channels_last = prefers_channels_last(input);
  return {in_format(pooled, channels_last), in_format(places, channels_last)};
}

Tensor roi_pool_backward_cuda(const Tensor& gradient, const Tensor& rois, const Tensor& places, double spatial_scale,
                              int64_t images, int64_t height, int64_t width, bool channels_last) {
  const RoiPoolCall call = checked_backward_call(gradient, rois, places, spatial_scale, images, height, width);
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device_index());
  const Tensor given = in_format(gradient, true), found = in_format(places, true);
  const Tensor boxes = comparable_rois(rois, gradient.scalar_type());
  Tensor map = allocated(gradient, gradient.scalar_type(), images, call.channels, height, width, true);
  if (map.numel() > 0) {
    check_launch("roi_pool_backward",
                 launch_roi_pool_backward(element_type(gradient.scalar_type()), call, given.const_data_ptr(),
                                          boxes.const_data_ptr(), found.const_data_ptr<int32_t>(),
                                          map.mutable_data_ptr(), current_stream(gradient)));
  }
  return in_format(map, channels_last);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "bool with_places) -> (Tensor, Tensor)");
  m.def(
      "roi_pool_backward(Tensor grad, Tensor rois, Tensor places, float spatial_scale, SymInt images, SymInt height, "
      "SymInt width, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool_cpu));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward_cpu));
}

#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool_cuda));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward_cuda));
}
#endif

}  // namespace mrcnn
