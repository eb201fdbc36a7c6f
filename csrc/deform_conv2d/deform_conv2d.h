#pragma once
// Deformable convolution (v1: Dai et al., 2017; v2, with a mask: Zhu et al., 2019): the geometry, shared by CPU, CUDA
// and emulator.
//
// Each output pixel looks at kernel_height x kernel_width sampling points instead of a regular window. A point is the
// window's place plus an offset of its own; its value is a bilinear mix of the four pixels around it, times its mask.
// The points' values make a row of a matrix of columns, and the rest is a product of matrices:
//
//            window           the points        row of columns, for each group of the weights
//            +---+---+---+    .  .              +-----------+-----------+----
//            | 0 | 1 | 2 |       .   .          | point 0   | point 1   |       each: channels of the group
//            +---+---+---+     ..      .        +-----------+-----------+----
//            | 3 ...     |
//
// Backward the same points are visited: a column's gradient is spread over the point's four pixels, and its products
// with these pixels tell how the value changes as the point moves.
#include <cmath>
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

// The shapes of a call.
struct DeformConv {
  int64_t images, channels, out_channels;
  int height, width;          // of the input
  int out_height, out_width;  // of the output
  int kernel_height, kernel_width;
  int stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
  int64_t groups, offset_groups;

  HOST_DEVICE int64_t pixels() const { return int64_t{1} * height * width; }
  HOST_DEVICE int64_t out_pixels() const { return int64_t{1} * out_height * out_width; }
  HOST_DEVICE int64_t taps() const { return int64_t{1} * kernel_height * kernel_width; }
  HOST_DEVICE int64_t group_channels() const { return channels / groups; }
  HOST_DEVICE int64_t offset_group_channels() const { return channels / offset_groups; }
};

// A sampling point: the pixel above and left of it, and how far it lies from there.
//
//      0 ----- 1      corner 0 is pixel (y, x), corner 3 pixel (y + 1, x + 1); those outside of the map count as zeros
//      |   .   |
//      2 ----- 3      down, across: 0 at corner 0, 1 at corner 3
template <typename T>
struct Point {
  int y, x;
  T down, across;
};

// Where tap `tap` of output pixel `pixel` looks. False if nothing of the map is near: outside by a pixel or more, or
// NaN. `offsets` are those of one image and offset group, [taps, 2, out_height, out_width], y before x.
template <typename T>
HOST_DEVICE bool point_at(const DeformConv& shape, const T* offsets, int tap, int64_t pixel, Point<T>& point) {
  const int64_t plane = shape.out_pixels();
  const int out_y = static_cast<int>(pixel / shape.out_width), out_x = static_cast<int>(pixel % shape.out_width);
  const int row = tap / shape.kernel_width, column = tap % shape.kernel_width;
  const int64_t window_y = int64_t{1} * out_y * shape.stride_y - shape.padding_y + int64_t{1} * row * shape.dilation_y;
  const int64_t window_x =
      int64_t{1} * out_x * shape.stride_x - shape.padding_x + int64_t{1} * column * shape.dilation_x;
  const T y = static_cast<T>(window_y) + offsets[2 * tap * plane + pixel];
  const T x = static_cast<T>(window_x) + offsets[(2 * tap + 1) * plane + pixel];
  // At exactly -1 the value is zero but grows with y: an offset of zero at the border must not lose its gradient.
  if (!(y >= T(-1) && y < static_cast<T>(shape.height) && x >= T(-1) && x < static_cast<T>(shape.width))) return false;
  const T top = std::floor(y), left = std::floor(x);
  point = {static_cast<int>(top), static_cast<int>(left), y - top, x - left};
  return true;
}

// The index of a corner's pixel in its map, or -1 outside.
template <typename T>
HOST_DEVICE int64_t corner_pixel(const DeformConv& shape, const Point<T>& point, int corner) {
  const int y = point.y + corner / 2, x = point.x + corner % 2;
  return y >= 0 && y < shape.height && x >= 0 && x < shape.width ? int64_t{1} * y * shape.width + x : -1;
}

template <typename T>
HOST_DEVICE T corner_weight(const Point<T>& point, int corner) {
  return (corner / 2 == 1 ? point.down : T(1) - point.down) * (corner % 2 == 1 ? point.across : T(1) - point.across);
}

// What a point's own numbers get, from the products of its column's gradient with the four corners.
template <typename T>
struct PointGradient {
  T y, x, mask;
};

template <typename T>
HOST_DEVICE PointGradient<T> point_gradient(const Point<T>& point, T mask, const T* products) {
  const T down = point.down, across = point.across;
  const T up = T(1) - down, back = T(1) - across;
  return {mask * (back * (products[2] - products[0]) + across * (products[3] - products[1])),
          mask * (up * (products[1] - products[0]) + down * (products[3] - products[2])),
          up * (back * products[0] + across * products[1]) + down * (back * products[2] + across * products[3])};
}

// ---- CUDA

// The output pixels that are worked on at a time: `count` pixels from `first` of each of `images` images from
// `first_image`. The matrices hold a row for each, image after image: columns are [groups, rows, taps, group_channels].
struct Chunk {
  int64_t first_image, images, first, count;

  HOST_DEVICE int64_t rows() const { return images * count; }
};

enum class DeformType { kFloat, kDouble, kHalf, kBFloat16 };

// Points of one image, offset group and tap that share a box, see launch_gather_gradient.
constexpr int kSegment = 256;
HOST_DEVICE int64_t segments_of(const Chunk& chunk) {
  return (chunk.count + kSegment - 1) / kSegment;
}
inline int64_t box_numbers(const DeformConv& shape, const Chunk& chunk) {
  return 4 * chunk.images * shape.offset_groups * shape.taps() * segments_of(chunk);
}

// Input and its gradient are [images, height, width, channels]; offsets and masks (null: all one) lie as the operator
// gets them. Input, columns and the gradients of columns are of `type`, everything else of the type that sums are made
// in. Addresses must be multiples of 16 bytes. The launchers return nullptr or an error message.

// Fills columns.
const char* launch_gather_columns(DeformType type, const DeformConv& shape, const Chunk& chunk, const void* input,
                                  const void* offsets, const void* masks, void* columns, void* stream);

// Fills the gradients of offsets and masks (null: not wanted) for the chunk's pixels.
const char* launch_point_gradients(DeformType type, const DeformConv& shape, const Chunk& chunk, const void* input,
                                   const void* offsets, const void* masks, const void* column_gradients,
                                   void* offset_gradients, void* mask_gradients, void* stream);

// Adds to the gradient of the input what the chunk's pixels send. `boxes` is scratch of box_numbers() ints: which
// pixels the points of each segment reach.
const char* launch_gather_gradient(DeformType type, const DeformConv& shape, const Chunk& chunk, const void* offsets,
                                   const void* masks, const void* column_gradients, int* boxes, void* input_gradient,
                                   void* stream);

// output[row][channel] += bias[channel], output of `type`.
const char* launch_add_bias(DeformType type, int64_t rows, int64_t channels, const void* bias, void* output,
                            void* stream);

// sums[i] += product[i], product of `type`.
const char* launch_add_product(DeformType type, int64_t count, const void* product, void* sums, void* stream);

}  // namespace mrcnn
