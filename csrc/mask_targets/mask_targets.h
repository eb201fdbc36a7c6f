#pragma once
// Shared by mask_targets.cpp and mask_targets_cuda.cu: polygons filled on a grid as COCO's tools fill them, and
// run-length encoded masks sampled as RoIAlign would sample them in full.
#include <cmath>
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

constexpr int64_t kMaximumTargetSize = 4096;
constexpr int64_t kMaximumTargetPoints = 4096;  // per bin and axis; adaptive sampling stops there

// The masks of some objects, one kind after the other. Object g is objects[4 * g ..]: first, last, height, width. With
// a height from 0 on it is run-length encoded, and its runs end at the pixels ends[first] .. ends[last - 1], down the
// columns, background first. With height -1 it is the polygons `first` up to `last`, of which polygon q has the points
// polygons[q] up to polygons[q + 1].
struct PackedMasks {
  const double* points;  // [point_count, 2] x, y
  const int64_t* polygons;
  const int32_t* ends;
  const int64_t* objects;
  int64_t point_count, polygon_count, run_count, object_count;
  int64_t tallest, widest;  // of the run-length encoded masks
};

struct TargetCall {
  PackedMasks masks;
  const int64_t* index;  // [regions] the object of each region
  const double* boxes;   // [regions, 4]
  int64_t regions, size;
  int64_t sampling_ratio;
  bool aligned, thresholded;
  float threshold;
  double matrix[6], inverse[6];  // from the masks' pixels to those of the boxes, and back
};

struct MaskObject {
  int64_t first, last, height, width;
};

// False if the numbers of an object lead outside of what was packed, or if there is no such object.
HOST_DEVICE bool packed_object(const PackedMasks& masks, int64_t number, MaskObject* object) {
  if (number < 0 || number >= masks.object_count) return false;
  const int64_t* numbers = masks.objects + 4 * number;
  *object = {numbers[0], numbers[1], numbers[2], numbers[3]};
  const int64_t count = object->height < 0 ? masks.polygon_count : masks.run_count;
  return object->first >= 0 && object->first <= object->last && object->last <= count &&
         object->height <= masks.tallest && object->width <= masks.widest;
}

HOST_DEVICE bool is_finite(const double* box) {
  for (int i = 0; i < 4; ++i) {
    if (!(box[i] - box[i] == 0)) return false;
  }
  return true;
}

HOST_DEVICE float as_target(const TargetCall& call, double mean) {
  const auto value = static_cast<float>(mean);
  return call.thresholded ? static_cast<float>(value >= call.threshold) : value;
}

// ---- polygons
//
// COCO's rule: corners are moved to a grid five times as fine, edges are drawn there pixel by pixel, and where such a
// line steps over the middle of a column of pixels, all pixels of the column from there down change sides. Here only
// those steps are worked out, each in the arithmetic of that rule, and not the lines between them.

struct FinePoint {
  int64_t x, y;
};

constexpr int64_t kFine = 5;

HOST_DEVICE int64_t fine_coordinate(double coordinate) {
  constexpr double kFar = 1125899906842624.;  // 2^50; what lies further out counts as if it lay there
  const double fine = 5. * coordinate + .5;
  return static_cast<int64_t>(fine > -kFar ? (fine < kFar ? fine : kFar) : -kFar);
}

// How points of polygons come onto the grid of a region.
struct TargetGrid {
  double left, top, scale_x, scale_y;
};

HOST_DEVICE double at_least(double value, double low) {
  return value > low ? value : low;
}

// Sides below a tenth of a pixel count as that, as in Detectron2.
HOST_DEVICE TargetGrid target_grid(const double* box, int64_t size) {
  const auto cells = static_cast<double>(size);
  return {box[0], box[1], cells / at_least(box[2] - box[0], 0.1), cells / at_least(box[3] - box[1], 0.1)};
}

HOST_DEVICE FinePoint fine_point(const TargetCall& call, const TargetGrid& grid, const double* point) {
  const double* m = call.matrix;
  const double x = m[0] * point[0] + m[1] * point[1] + m[2], y = m[3] * point[0] + m[4] * point[1] + m[5];
  return {fine_coordinate((x - grid.left) * grid.scale_x), fine_coordinate((y - grid.top) * grid.scale_y)};
}

HOST_DEVICE int64_t rounded(double from, double slope, int64_t steps) {
  return static_cast<int64_t>(from + slope * static_cast<double>(steps) + .5);
}

// Calls toggle(column, row) for each column of [first, last) whose middle an edge steps over: all pixels of the column
// from `row` (up to `height`: none) down change sides.
template <typename Toggle>
HOST_DEVICE void cross_columns(FinePoint a, FinePoint b, int64_t first, int64_t last, int64_t height,
                               const Toggle& toggle) {
  if (a.x == b.x) return;
  const int64_t dx = a.x < b.x ? b.x - a.x : a.x - b.x, dy = a.y < b.y ? b.y - a.y : a.y - b.y;
  const bool steep = dx < dy;
  if (steep ? a.y > b.y : a.x > b.x) {
    const FinePoint other = a;
    a = b;
    b = other;
  }
  const double slope =
      steep ? static_cast<double>(b.x - a.x) / static_cast<double>(dy) : static_cast<double>(b.y - a.y) / dx;
  const auto x = static_cast<double>(a.x), y = static_cast<double>(a.y);
  const int64_t left = a.x < b.x ? a.x : b.x, right = a.x < b.x ? b.x : a.x;
  // The middle of column n lies between 5n + 2 and 5n + 3.
  if (right < 3) return;
  const int64_t reached = left > 2 ? (left + 2) / kFine : 0, passed = (right - 3) / kFine + 1;
  const int64_t begin = reached > first ? reached : first, end = passed < last ? passed : last;
  for (int64_t column = begin; column < end; ++column) {
    const int64_t middle = kFine * column + 2;
    int64_t level;  // the upper one of the two pixels of the step
    if (steep) {
      const bool rising = a.x < b.x;
      const auto beyond = [&](int64_t steps) {
        const int64_t place = rounded(x, slope, steps);
        return rising ? place > middle : place <= middle;
      };
      const double guess = (static_cast<double>(middle) + .5 - x) / slope;
      int64_t steps = guess > 1 ? (guess < static_cast<double>(dy) ? static_cast<int64_t>(guess) : dy) : 1;
      while (steps > 1 && beyond(steps - 1)) --steps;
      while (steps < dy && !beyond(steps)) ++steps;
      level = a.y + steps - 1;
    } else {
      const int64_t before = rounded(y, slope, middle - a.x), after = rounded(y, slope, middle + 1 - a.x);
      level = before < after ? before : after;
    }
    const double row = (static_cast<double>(level) + .5) / 5. - .5;
    toggle(column, row > 0 ? (row < static_cast<double>(height) ? static_cast<int64_t>(ceil(row)) : height) : 0);
  }
}

// ---- run-length encoded masks

// One axis of a region: `bins` bins of `points` sampling points each, found in the mask.
struct SampleAxis {
  double start, extent;
  int64_t bins, points;
};

HOST_DEVICE SampleAxis sample_axis(const TargetCall& call, double low, double high) {
  const double length = high - low, extent = call.aligned ? length : at_least(length, 1.);
  const double adaptive = ceil(extent / static_cast<double>(call.size));
  const double points = call.sampling_ratio > 0 ? static_cast<double>(call.sampling_ratio) : at_least(adaptive, 0.);
  constexpr auto kMost = static_cast<double>(kMaximumTargetPoints);
  return {low - (call.aligned ? .5 : 0.), extent, call.size, static_cast<int64_t>(points < kMost ? points : kMost)};
}

// Sampling point number `index` of all bins, as a corner coordinate in pixels of the boxes.
HOST_DEVICE double sample_position(const SampleAxis& axis, int64_t index, double shift) {
  const auto count = static_cast<double>(axis.bins * axis.points);
  return axis.start + (static_cast<double>(index) + .5) / count * axis.extent + shift;
}

// Where a point lies among the pixels of an axis of the mask; RoIAlign's rules at its ends.
struct SamplePlace {
  int64_t pixel;    // the first of two
  double fraction;  // of the second one; 0 at the end, where there is none
};

HOST_DEVICE bool sample_place(double position, int64_t length, SamplePlace* place) {
  if (!(position >= -1 && position <= static_cast<double>(length))) return false;
  const auto end = static_cast<double>(length - 1);
  const double inside = position > 0 ? (position < end ? position : end) : 0;
  place->pixel = static_cast<int64_t>(inside);
  place->fraction = inside - static_cast<double>(place->pixel);
  return true;
}

// One axis where the mask is neither turned nor sheared: a bin is a weighted sum over pixels [low, high) of the mask.
struct PixelRange {
  int32_t low, high;
};

struct MappedAxis {
  SampleAxis samples;
  double scale, offset, shift;
  int64_t length;  // of the mask

  HOST_DEVICE bool rising() const { return scale * samples.extent >= 0; }
  // Bins in the order of the mask's pixels.
  HOST_DEVICE int64_t slot(int64_t bin) const { return rising() ? bin : samples.bins - 1 - bin; }
};

HOST_DEVICE MappedAxis mapped_axis(const TargetCall& call, const double* box, const MaskObject& object, bool vertical) {
  const SampleAxis samples = vertical ? sample_axis(call, box[1], box[3]) : sample_axis(call, box[0], box[2]);
  return {samples, call.inverse[vertical ? 4 : 0], call.inverse[vertical ? 5 : 2], call.aligned ? .5 : 0.,
          vertical ? object.height : object.width};
}

// Tables of all bins share one array: neighbouring bins have at most two pixels in common, so that with three places
// more for each bin none meets another.
HOST_DEVICE int64_t table_length(int64_t length, int64_t bins) {
  return length + 3 * bins;
}
HOST_DEVICE int64_t table_place(int64_t slot, int64_t pixel) {
  return 3 * slot + pixel;
}

// Fills the weights of one bin, in sums of its points; with `summed` those of all pixels before each one instead, for
// [low, high].
HOST_DEVICE_CALL inline PixelRange weigh_bin(const MappedAxis& axis, int64_t bin, bool summed, double* table) {
  const int64_t slot = axis.slot(bin), points = axis.samples.points;
  int64_t low = 0, high = 0;
  for (int64_t i = 0; i < points; ++i) {
    const int64_t point = axis.rising() ? i : points - 1 - i;
    const double position = sample_position(axis.samples, bin * points + point, axis.shift);
    SamplePlace place;
    if (!sample_place(axis.scale * position + axis.offset - axis.shift, axis.length, &place)) continue;
    if (low == high) low = high = place.pixel;
    const int64_t needed = place.pixel + 2 < axis.length ? place.pixel + 2 : axis.length;
    for (; high < needed; ++high) table[table_place(slot, high)] = 0;
    table[table_place(slot, place.pixel)] += 1 - place.fraction;
    if (place.fraction > 0) table[table_place(slot, place.pixel + 1)] += place.fraction;
  }
  if (summed && low < high) {
    double sum = 0;
    for (int64_t pixel = low; pixel < high; ++pixel) {
      double& weight = table[table_place(slot, pixel)];
      const double next = sum + weight;
      weight = sum;
      sum = next;
    }
    table[table_place(slot, high)] = sum;
  }
  return {static_cast<int32_t>(low), static_cast<int32_t>(high)};
}

// The first run of an object that ends behind a pixel.
HOST_DEVICE int64_t run_at(const int32_t* ends, const MaskObject& object, int64_t pixel) {
  int64_t low = object.first, high = object.last;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (ends[middle] > pixel) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

HOST_DEVICE bool in_foreground(const MaskObject& object, int64_t run) {
  return ((run - object.first) & 1) != 0;
}

// The mean of one bin where the mask is turned or sheared: every point looks up its four pixels.
HOST_DEVICE_CALL inline double sampled_mean(const TargetCall& call, const double* box, const MaskObject& object,
                                            int64_t row, int64_t column) {
  const SampleAxis down = sample_axis(call, box[1], box[3]), across = sample_axis(call, box[0], box[2]);
  const double shift = call.aligned ? .5 : 0.;
  const double* m = call.inverse;
  const auto pixel = [&](int64_t y, int64_t x) {
    const int64_t run = run_at(call.masks.ends, object, x * object.height + y);
    return in_foreground(object, run) && run < object.last ? 1. : 0.;
  };
  double sum = 0;
  for (int64_t i = 0; i < down.points; ++i) {
    const double y = sample_position(down, row * down.points + i, shift);
    for (int64_t j = 0; j < across.points; ++j) {
      const double x = sample_position(across, column * across.points + j, shift);
      SamplePlace at_x, at_y;
      if (!sample_place(m[0] * x + m[1] * y + m[2] - shift, object.width, &at_x)) continue;
      if (!sample_place(m[3] * x + m[4] * y + m[5] - shift, object.height, &at_y)) continue;
      const int64_t right = at_x.pixel + (at_x.fraction > 0), below = at_y.pixel + (at_y.fraction > 0);
      const double upper =
          (1 - at_x.fraction) * pixel(at_y.pixel, at_x.pixel) + at_x.fraction * pixel(at_y.pixel, right);
      const double lower = (1 - at_x.fraction) * pixel(below, at_x.pixel) + at_x.fraction * pixel(below, right);
      sum += (1 - at_y.fraction) * upper + at_y.fraction * lower;
    }
  }
  const int64_t count = down.points * across.points;
  return count > 0 ? sum / static_cast<double>(count) : 0.;
}

HOST_DEVICE bool is_straight(const TargetCall& call) {
  return call.inverse[1] == 0 && call.inverse[3] == 0;
}

// Launches the CUDA kernels; returns nullptr or an error message. Scratch: `tables` [regions * target_table(call)],
// `ranges` [regions * 4 * size].
inline int64_t target_table(const TargetCall& call) {
  return table_length(call.masks.tallest, call.size) + table_length(call.masks.widest, call.size);
}
const char* launch_mask_targets(const TargetCall& call, double* tables, int32_t* ranges, float* targets, void* stream);

}  // namespace mrcnn
