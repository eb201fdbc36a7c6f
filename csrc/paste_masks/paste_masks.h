#pragma once
// Shared by paste_masks.cpp and paste_masks_cuda.cu: where a mask's values lie in the image, and what lies between
// them.
//
// A cell is what lies between two neighbouring values of an axis. Beyond the first and the last value there is one more
// cell each, in which the mask fades to zero; further out it has no pixels:
//
//    value        0       1       2                 Along a column the value changes in one direction within a cell,
//            |    .   |   .   |   .    |            even after rounding (see mixed()). So it passes the threshold at
//    cell     -1      0       1      2              most once there, and the first and the last row of a cell decide
//                                                   all between them unless they differ.
#include <cmath>
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

// What a block's shared memory holds of the cells of one axis.
constexpr int64_t kMaximumPasteSize = 4000;

// One axis of a mask in the image: `bins` values spread evenly over `extent` pixels from `start` on.
struct PasteAxis {
  double start, extent;
  int64_t bins;
};

// Where a pixel's centre lies among the values of an axis.
struct PastePlace {
  int64_t cell;    // between the values `cell` and `cell + 1`
  float fraction;  // of the way from the former to the latter
};

HOST_DEVICE PasteAxis paste_axis(double low, double high, int64_t bins) {
  return {low, high - low, bins};
}

// False for a box that is empty, inverted or not finite: it has no pixels.
HOST_DEVICE bool has_pixels(const PasteAxis& axis) {
  return axis.extent > 0 && axis.extent < INFINITY;
}

HOST_DEVICE double paste_position(const PasteAxis& axis, int64_t pixel) {
  return (static_cast<double>(pixel) + 0.5 - axis.start) / axis.extent * static_cast<double>(axis.bins) - 0.5;
}

HOST_DEVICE PastePlace paste_place(const PasteAxis& axis, int64_t pixel) {
  const double position = paste_position(axis, pixel), cell = floor(position);
  return {static_cast<int64_t>(cell), static_cast<float>(position - cell)};
}

// The first pixel of [0, length) whose place is in `cell` or beyond it; `length` if there is none.
HOST_DEVICE int64_t first_pixel(const PasteAxis& axis, int64_t cell, int64_t length) {
  const auto value = static_cast<double>(cell);
  const double guess = axis.start + (value + 0.5) / static_cast<double>(axis.bins) * axis.extent - 0.5;
  int64_t pixel = guess > 0 ? (guess < static_cast<double>(length) ? static_cast<int64_t>(guess) : length) : 0;
  while (pixel > 0 && paste_position(axis, pixel - 1) >= value) --pixel;
  while (pixel < length && paste_position(axis, pixel) < value) ++pixel;
  return pixel;
}

// Linear between two values. Rounded after each step, never fused: so it rises or falls with the fraction throughout,
// and both devices, with and without AVX2, get the same bits.
HOST_DEVICE float mixed(float from, float to, float fraction) {
  return from + fraction * (to - from);
}

// Value `row` of a mask [size, size] at a place in its columns; zero outside.
HOST_DEVICE float value_across(const float* mask, int64_t size, int64_t row, const PastePlace& column) {
  if (row < 0 || row >= size) return 0.f;
  const float* values = mask + row * size;
  return mixed(column.cell >= 0 ? values[column.cell] : 0.f, column.cell + 1 < size ? values[column.cell + 1] : 0.f,
               column.fraction);
}

// Whether the mask holds the pixel at two places, each in a cell of -1 up to size - 1.
HOST_DEVICE bool holds(const float* mask, int64_t size, const PastePlace& row, const PastePlace& column,
                       float threshold) {
  return mixed(value_across(mask, size, row.cell, column), value_across(mask, size, row.cell + 1, column),
               row.fraction) >= threshold;
}

// Launches the CUDA kernels; each returns nullptr or an error message. Masks are [count, size, size] float32, boxes
// [count, 4] float64.
struct PasteCall {
  const float* masks;
  const double* boxes;
  int64_t count, size, height, width;
  float threshold;
};

// Pixels at which the masks begin and end, down the columns, those of mask n at [starts[n], starts[n + 1]). What does
// not fit `capacity` is counted but not written. `offsets` is scratch [count * width].
const char* launch_paste_edges(const PasteCall& call, int64_t capacity, int32_t* offsets, int64_t* starts,
                               int32_t* edges, void* stream);
const char* launch_paste_dense(const PasteCall& call, bool* images, void* stream);

}  // namespace mrcnn
