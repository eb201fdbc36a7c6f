#pragma once
// Position-sensitive pooling on the CPU. One piece of work is one bin of several channels that come out: their planes
// lie side by side in a vector (see lanes.h) while all regions read from them or add to them. Every channel of the map
// belongs to one bin, so gradients are never shared between threads, and they are added in the order of the regions.
#include <algorithm>
#include <cstring>
#include <vector>

#include "../lanes.h"
#include "../regions.h"
#include "position_sensitive.h"

namespace mrcnn {

template <typename A>
constexpr int kPsLanes = LaneVector<A>::kSize;

// Every region's pixels in every bin of one axis, with their weights.
template <typename A>
struct AxisTaps {
  std::vector<Tap<A>> taps;
  std::vector<int64_t> begin = {0};

  Taps<A> of(int64_t bin) const { return {taps.data() + begin[bin], static_cast<int>(begin[bin + 1] - begin[bin])}; }

  // Samples move one way along an axis, so a pixel that was met before is among the last two.
  template <typename Axis>
  void add(const Axis& axis, int bins) {
    for (int bin = 0; bin < bins; ++bin) {
      axis.each(bin, [&](int pixel, A weight) {
        const auto count = static_cast<int64_t>(taps.size());
        for (int64_t back = count - 1; back >= begin.back() && back >= count - 2; --back) {
          if (taps[back].position == pixel) {
            taps[back].weight += weight;
            return;
          }
        }
        taps.push_back({pixel, weight});
      });
      begin.push_back(static_cast<int64_t>(taps.size()));
    }
  }
};

template <typename A>
struct PsPlan {
  ByImage regions;
  AxisTaps<A> rows, columns;
  std::vector<A> shares;  // [regions, bins]

  template <Bins kBins>
  void fill(const char* op, const A* rois, const PositionSensitiveCall& call) {
    regions = by_image(op, rois, call.regions, call.images);
    shares.reserve(call.regions * call.pooled_height * call.pooled_width);
    for (int64_t r = 0; r < call.regions; ++r) {
      const auto axes = RegionBinAxes<kBins, A>::of(rois + 5 * r + 1, call);
      rows.add(axes.rows, call.pooled_height);
      columns.add(axes.columns, call.pooled_width);
      for (int y = 0; y < call.pooled_height; ++y) {
        for (int x = 0; x < call.pooled_width; ++x) {
          shares.push_back(BinAxis<kBins, A>::share(axes.rows, y, axes.columns, x));
        }
      }
    }
  }
};

// The weighted sum of a bin's pixels, divided by its share.
template <typename A>
inline __attribute__((always_inline)) void pool_bin(const A* lanes, int width, Taps<A> rows, Taps<A> columns, A share,
                                                    A* values) {
  using Vector = typename LaneVector<A>::type;
  constexpr int kSize = LaneVector<A>::kSize;
  Vector sum{}, pixel;
  for (const Tap<A>& row : rows) {
    const A* from = lanes + int64_t{1} * row.position * width * kSize;
    for (const Tap<A>& column : columns) {
      std::memcpy(&pixel, from + column.position * kSize, sizeof(pixel));
      sum += row.weight * column.weight * pixel;
    }
  }
  sum /= share;
  std::memcpy(values, &sum, sizeof(sum));
}

template <typename A>
inline __attribute__((always_inline)) void spread_bin(const A* values, int width, Taps<A> rows, Taps<A> columns,
                                                      A share, A* lanes) {
  using Vector = typename LaneVector<A>::type;
  constexpr int kSize = LaneVector<A>::kSize;
  Vector value, pixel;
  std::memcpy(&value, values, sizeof(value));
  value /= share;
  for (const Tap<A>& row : rows) {
    A* to = lanes + int64_t{1} * row.position * width * kSize;
    for (const Tap<A>& column : columns) {
      std::memcpy(&pixel, to + column.position * kSize, sizeof(pixel));
      pixel += row.weight * column.weight * value;
      std::memcpy(to + column.position * kSize, &pixel, sizeof(pixel));
    }
  }
}

template <typename A>
void pool_bin_plain(const A* lanes, int width, Taps<A> rows, Taps<A> columns, A share, A* values) {
  pool_bin(lanes, width, rows, columns, share, values);
}
template <typename A>
void spread_bin_plain(const A* values, int width, Taps<A> rows, Taps<A> columns, A share, A* lanes) {
  spread_bin(values, width, rows, columns, share, lanes);
}

#ifdef __x86_64__
template <typename A>
__attribute__((target("avx2"))) void pool_bin_avx2(const A* lanes, int width, Taps<A> rows, Taps<A> columns, A share,
                                                   A* values) {
  pool_bin(lanes, width, rows, columns, share, values);
}
template <typename A>
__attribute__((target("avx2"))) void spread_bin_avx2(const A* values, int width, Taps<A> rows, Taps<A> columns, A share,
                                                     A* lanes) {
  spread_bin(values, width, rows, columns, share, lanes);
}
#endif

template <typename A>
struct BinKernels {
  using Kernel = void (*)(const A*, int, Taps<A>, Taps<A>, A, A*);
  Kernel pool, spread;
};

template <typename A>
BinKernels<A> bin_kernels() {
#ifdef __x86_64__
  if (has_avx2()) return {&pool_bin_avx2<A>, &spread_bin_avx2<A>};
#endif
  return {&pool_bin_plain<A>, &spread_bin_plain<A>};
}

// Some bins of some channels out of one image.
struct Piece {
  int64_t image, channel;  // the first channel out
  int bin, bins, used;     // the first bin, how many, and how many channels
};

// Bins whose planes are brought together at once: one after the other from a contiguous map; from one with channels
// last, several that lie next to each other in every pixel.
constexpr int kBinsAtOnce = 8;

// The planes of a piece, [bins, pixels, kPsLanes].
template <typename T>
void gather_piece(const PositionSensitiveCall& call, const Piece& piece, const T* map, accumulator_t<T>* lanes) {
  using A = accumulator_t<T>;
  constexpr int kLanes = kPsLanes<A>;
  const int64_t pixels = int64_t{1} * call.height * call.width;
  const int bins = call.pooled_height * call.pooled_width;
  const T* from = map + piece.image * call.map_image + (piece.channel * bins + piece.bin) * call.map_channel;
  if (call.map_pixel == 1) {
    gather_lanes<kLanes>(from, {1, bins * call.map_channel}, pixels, piece.used, lanes);
    return;
  }
  if (piece.used < kLanes) std::fill_n(lanes, piece.bins * pixels * kLanes, A(0));
  for (int64_t p = 0; p < pixels; ++p, from += call.map_pixel, lanes += kLanes) {
    if constexpr (std::is_same_v<T, A>) {
      transpose(from, bins, piece.used, piece.bins, lanes, pixels * kLanes);
    } else {
      A rows[kLanes * kBinsAtOnce];
      for (int k = 0; k < piece.used; ++k) widen_or_copy(from + k * bins, piece.bins, rows + k * kBinsAtOnce);
      transpose(rows, kBinsAtOnce, piece.used, piece.bins, lanes, pixels * kLanes);
    }
  }
}

template <typename T>
void scatter_piece(const PositionSensitiveCall& call, const Piece& piece, const accumulator_t<T>* lanes, T* map) {
  using A = accumulator_t<T>;
  constexpr int kLanes = kPsLanes<A>;
  const int64_t pixels = int64_t{1} * call.height * call.width;
  const int bins = call.pooled_height * call.pooled_width;
  T* to = map + piece.image * call.map_image + (piece.channel * bins + piece.bin) * call.map_channel;
  if (call.map_pixel == 1) {
    scatter_lanes<kLanes>(lanes, {1, bins * call.map_channel}, pixels, piece.used, to);
    return;
  }
  for (int64_t p = 0; p < pixels; ++p, to += call.map_pixel, lanes += kLanes) {
    if constexpr (std::is_same_v<T, A>) {
      transpose(lanes, pixels * kLanes, piece.bins, piece.used, to, bins);
    } else {
      A rows[kLanes * kBinsAtOnce];
      transpose(lanes, pixels * kLanes, piece.bins, piece.used, rows, kBinsAtOnce);
      for (int k = 0; k < piece.used; ++k) narrow_or_copy(rows + k * kBinsAtOnce, piece.bins, to + k * bins);
    }
  }
}

template <typename A, typename Body>
void for_each_piece(const PositionSensitiveCall& call, const Body& body) {
  const int bins = call.pooled_height * call.pooled_width, at_once = call.map_pixel == 1 ? 1 : kBinsAtOnce;
  const int64_t groups = (call.channels_out + kPsLanes<A> - 1) / kPsLanes<A>;
  const int64_t steps = (bins + at_once - 1) / at_once;
  parallel_for(0, call.images * groups * steps, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> lanes(int64_t{1} * at_once * call.height * call.width * kPsLanes<A>);
    for (int64_t i = begin; i < end; ++i) {
      // Neighbouring bins come one after the other: what they read and write shares cache lines.
      const int bin = static_cast<int>(i % steps) * at_once;
      const int64_t image = i / steps / groups, channel = i / steps % groups * kPsLanes<A>;
      const int used = static_cast<int>(std::min<int64_t>(kPsLanes<A>, call.channels_out - channel));
      body(Piece{image, channel, bin, std::min(at_once, bins - bin), used}, lanes.data());
    }
  });
}

// Calls body(taps along y, taps along x, share, offset into the pooled values, the bin's lanes) for all bins of a piece
// and all regions of its image, in their order.
template <typename A, typename Body>
void for_each_bin(const PositionSensitiveCall& call, const PsPlan<A>& plan, const Piece& piece, A* lanes,
                  const Body& body) {
  const int64_t pixels = int64_t{1} * call.height * call.width;
  const int64_t bins = int64_t{1} * call.pooled_height * call.pooled_width;
  for (int bin = piece.bin; bin < piece.bin + piece.bins; ++bin, lanes += pixels * kPsLanes<A>) {
    const int y = bin / call.pooled_width, x = bin % call.pooled_width;
    for (int64_t i = plan.regions.starts[piece.image]; i < plan.regions.starts[piece.image + 1]; ++i) {
      const int64_t region = plan.regions.order[i];
      body(plan.rows.of(region * call.pooled_height + y), plan.columns.of(region * call.pooled_width + x),
           plan.shares[region * bins + bin],
           region * call.pooled_region + bin * call.pooled_bin + piece.channel * call.pooled_channel, lanes);
    }
  }
}

template <typename T>
void pool_position_sensitive(const PositionSensitiveCall& call, const PsPlan<accumulator_t<T>>& plan, const T* map,
                             T* pooled) {
  using A = accumulator_t<T>;
  const BinKernels<A> kernels = bin_kernels<A>();
  for_each_piece<A>(call, [&](const Piece& piece, A* lanes) {
    if (plan.regions.starts[piece.image] == plan.regions.starts[piece.image + 1]) return;
    gather_piece(call, piece, map, lanes);
    for_each_bin(call, plan, piece, lanes, [&](Taps<A> rows, Taps<A> columns, A share, int64_t at, A* planes) {
      A values[kPsLanes<A>];
      kernels.pool(planes, call.width, rows, columns, share, values);
      for (int k = 0; k < piece.used; ++k) pooled[at + k * call.pooled_channel] = static_cast<T>(values[k]);
    });
  });
}

template <typename T>
void spread_position_sensitive(const PositionSensitiveCall& call, const PsPlan<accumulator_t<T>>& plan,
                               const T* gradient, T* map) {
  using A = accumulator_t<T>;
  const BinKernels<A> kernels = bin_kernels<A>();
  const int64_t pixels = int64_t{1} * call.height * call.width;
  for_each_piece<A>(call, [&](const Piece& piece, A* lanes) {
    std::fill_n(lanes, piece.bins * pixels * kPsLanes<A>, A(0));
    for_each_bin(call, plan, piece, lanes, [&](Taps<A> rows, Taps<A> columns, A share, int64_t at, A* planes) {
      A values[kPsLanes<A>] = {};
      for (int k = 0; k < piece.used; ++k) values[k] = static_cast<A>(gradient[at + k * call.pooled_channel]);
      kernels.spread(values, call.width, rows, columns, share, planes);
    });
    scatter_piece(call, piece, lanes, map);
  });
}

}  // namespace mrcnn
