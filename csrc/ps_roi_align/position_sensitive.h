#pragma once
// Position-sensitive pooling (Dai et al., R-FCN, 2016): every bin of a region reads a channel of its own, shared by
// ps_roi_align and ps_roi_pool, by CPU, CUDA and emulator.
//
//   channels of the map            bins of a region, 2 x 2
//   0   1   2   3   4   5 ...      channel out 0: | 0 | 1 |    channel out 1: | 4 | 5 |
//                                                 | 2 | 3 |                   | 6 | 7 |
//
// What a bin takes from its channel factors per axis in both operators, so what follows deals with one axis.
#include <cmath>
#include <cstdint>

#include "../portable.h"
#include "../roi_align/roi_align.h"
#include "../roi_pool/roi_pool.h"

namespace mrcnn {

// How the pixels of a bin are found.
enum class Bins {
  kSampled,  // ps_roi_align: bilinear samples
  kWhole,    // ps_roi_pool: whole pixels
};

struct PositionSensitiveCall {
  int64_t images, channels_out, regions;
  int height, width;                // of the map
  int pooled_height, pooled_width;  // bins
  double scale;
  int sampling_ratio;
  // Distances in elements in the map and in the pooled values, which may be contiguous or channels last.
  int64_t map_image, map_channel, map_pixel, pooled_region, pooled_channel, pooled_bin;
};

// One axis of a region. `each(bin, f)` calls f(pixel, weight) for the pixels of a bin, `weight(bin, pixel)` is the sum
// of these weights for one pixel, `reach(bin)` holds all pixels with a weight, and `share(rows, y, columns, x)` is what
// the sum of a bin is divided by.
template <Bins kBins, typename T>
struct BinAxis;

template <typename T>
struct BinAxis<Bins::kSampled, T> {
  AxisGeometry<T> axis;

  HOST_DEVICE static BinAxis of(T low, T high, int bins, int length, const PositionSensitiveCall& call) {
    Pooling pooling{};
    pooling.sampling_ratio = call.sampling_ratio;
    pooling.aligned = true;  // the half pixel that the operator always takes off
    return {axis_geometry(low, high, static_cast<T>(call.scale), bins, length, pooling)};
  }

  template <typename F>
  HOST_DEVICE void each(int bin, const F& f) const {
    const SampleRange range = sample_range(axis, bin);
    for (int i = range.first; i < range.last; ++i) {
      Sample<T> sample;
      if (!sample_at(axis, bin, i, sample)) continue;
      f(sample.low, sample.low_weight);
      if (sample.high_weight != T(0)) f(sample.high, sample.high_weight);
    }
  }

  HOST_DEVICE T weight(int bin, int pixel) const {
    const SampleRange range = sample_range(axis, bin);
    T weight = T(0);
    for (int i = range.first; i < range.last; ++i) {
      Sample<T> sample;
      if (!sample_at(axis, bin, i, sample)) continue;
      if (sample.low == pixel) weight += sample.low_weight;
      if (sample.high == pixel) weight += sample.high_weight;
    }
    return weight;
  }

  // With a margin for the bilinear neighbour, samples moved in from outside, and the rounding of boxes far away.
  HOST_DEVICE PixelRange reach(int bin) const {
    if (axis.samples == 0) return {0, 0};
    const T one = axis.start + T(bin) * axis.bin, other = one + axis.bin;
    const T margin = T(3) + T(1e-6) * (std::fabs(one) + std::fabs(other));
    const T low = (one < other ? one : other) - margin, high = (one < other ? other : one) + margin;
    if (!(high > T(0)) || !(low < T(axis.length))) return {0, 0};
    return {low > T(0) ? static_cast<int>(low) : 0, high < T(axis.length) ? static_cast<int>(high) : axis.length};
  }

  HOST_DEVICE static T share(const BinAxis& rows, int, const BinAxis& columns, int) {
    const T count = T(rows.axis.samples) * T(columns.axis.samples);
    return count > T(1) ? count : T(1);
  }
};

template <typename T>
struct BinAxis<Bins::kWhole, T> {
  PixelAxis<T> axis;

  HOST_DEVICE static BinAxis of(T low, T high, int bins, int length, const PositionSensitiveCall& call) {
    // The last pixel of the map never counts: torchvision's rule, and that of the paper's code.
    return {pixel_axis<false>(low, high, static_cast<T>(call.scale), bins, length - 1)};
  }

  template <typename F>
  HOST_DEVICE void each(int bin, const F& f) const {
    const PixelRange range = pixel_range(axis, bin);
    for (int pixel = range.first; pixel < range.last; ++pixel) f(pixel, T(1));
  }

  HOST_DEVICE T weight(int bin, int pixel) const {
    const PixelRange range = pixel_range(axis, bin);
    return pixel >= range.first && pixel < range.last ? T(1) : T(0);
  }

  HOST_DEVICE PixelRange reach(int bin) const { return pixel_range(axis, bin); }

  HOST_DEVICE static T share(const BinAxis& rows, int y, const BinAxis& columns, int x) {
    const PixelRange row = pixel_range(rows.axis, y), column = pixel_range(columns.axis, x);
    const int height = row.last - row.first, width = column.last - column.first;
    return height > 0 && width > 0 ? static_cast<T>(height * width) : T(1);
  }
};

template <Bins kBins, typename T>
struct RegionBinAxes {
  BinAxis<kBins, T> rows, columns;

  // `roi` is x1, y1, x2, y2.
  HOST_DEVICE static RegionBinAxes of(const T* roi, const PositionSensitiveCall& call) {
    return {BinAxis<kBins, T>::of(roi[1], roi[3], call.pooled_height, call.height, call),
            BinAxis<kBins, T>::of(roi[0], roi[2], call.pooled_width, call.width, call)};
  }
};

// CUDA: regions is [regions, 5] (image, x1, y1, x2, y2) in the accumulation type. Return nullptr or an error message.
template <Bins kBins>
const char* launch_position_sensitive(ElementType type, const PositionSensitiveCall& call, const void* map,
                                      const void* regions, void* pooled, void* stream);
template <Bins kBins>
const char* launch_position_sensitive_backward(ElementType type, const PositionSensitiveCall& call,
                                               const void* gradient, const void* regions, void* map, void* stream);

}  // namespace mrcnn
