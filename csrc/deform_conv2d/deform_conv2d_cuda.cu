// Deformable convolution on the device, around products of matrices that BLAS makes. Nothing is added to by two
// threads: the gradient of the input is gathered, pixel by pixel, in the order of the points, so there are no atomics
// and every run gives the same bits.
#include "../cuda_launch.h"
#include "deform_conv2d.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kSegment == kThreads, "one thread per point of a segment");

template <typename T>
using sum_t = decltype(widened(T{}));

// Offsets and masks of an image and offset group.
template <typename A>
struct Points {
  const A *offsets, *masks;

  __device__ __forceinline__ A mask(int tap, int64_t plane, int64_t pixel) const {
    return masks == nullptr ? A(1) : masks[tap * plane + pixel];
  }
};

template <typename A>
__device__ __forceinline__ Points<A> points_of(const DeformConv& shape, const A* offsets, const A* masks, int64_t image,
                                               int64_t offset_group) {
  const int64_t first = (image * shape.offset_groups + offset_group) * shape.taps() * shape.out_pixels();
  return {offsets + 2 * first, masks == nullptr ? nullptr : masks + first};
}

// Where a channel's columns begin: those of row r and tap t lie (r * taps + t) * group_channels further on.
__device__ __forceinline__ int64_t column_of(const DeformConv& shape, const Chunk& chunk, int64_t channel) {
  const int64_t depth = shape.group_channels();
  return channel / depth * chunk.rows() * shape.taps() * depth + channel % depth;
}

// ---- columns

// One thread = kVector neighbouring channels of one point.
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    gather_columns(const __grid_constant__ DeformConv shape, const __grid_constant__ Chunk chunk,
                   const T* __restrict__ input, const sum_t<T>* __restrict__ offsets,
                   const sum_t<T>* __restrict__ masks, T* __restrict__ columns) {
  using A = sum_t<T>;
  const int64_t packets = shape.channels / kVector, taps = shape.taps();
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= chunk.rows() * taps * packets) return;
  const int64_t channel = index % packets * kVector, row = index / packets / taps;
  const int tap = static_cast<int>(index / packets % taps);
  const int64_t image = chunk.first_image + row / chunk.count, pixel = chunk.first + row % chunk.count;
  const Points<A> points = points_of(shape, offsets, masks, image, channel / shape.offset_group_channels());

  A sums[kVector];
#pragma unroll
  for (int k = 0; k < kVector; ++k) sums[k] = A(0);
  Point<A> point;
  if (point_at(shape, points.offsets, tap, pixel, point)) {
    const A mask = points.mask(tap, shape.out_pixels(), pixel);
    const T* map = input + image * shape.pixels() * shape.channels + channel;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t at = corner_pixel(shape, point, corner);
      if (at < 0) continue;
      const A weight = corner_weight(point, corner) * mask;
      const auto values = packet_at<kVector>(map + at * shape.channels);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums[k] = multiply_add(weight, widened(values.values[k]), sums[k]);
    }
  }
  Packet<T, kVector> result;
#pragma unroll
  for (int k = 0; k < kVector; ++k) narrowed(sums[k], result.values[k]);
  T* column = columns + column_of(shape, chunk, channel) + (row * taps + tap) * shape.group_channels();
  *reinterpret_cast<Packet<T, kVector>*>(column) = result;
}

// ---- gradients of offsets and masks

// One warp = one point; one lane = kVector of its channels, and then those 32 * kVector further on.
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    point_gradients(const __grid_constant__ DeformConv shape, const __grid_constant__ Chunk chunk,
                    const T* __restrict__ input, const sum_t<T>* __restrict__ offsets,
                    const sum_t<T>* __restrict__ masks, const T* __restrict__ column_gradients,
                    sum_t<T>* __restrict__ offset_gradients, sum_t<T>* __restrict__ mask_gradients) {
  using A = sum_t<T>;
  const int64_t taps = shape.taps(), plane = shape.out_pixels();
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (index >= chunk.rows() * shape.offset_groups * taps) return;  // whole warps
  // Neighbouring warps are neighbouring pixels, which look at the same part of the map.
  const int64_t pixel = chunk.first + index % chunk.count;
  const int tap = static_cast<int>(index / chunk.count % taps);
  const int64_t offset_group = index / chunk.count / taps % shape.offset_groups;
  const int64_t image_of_chunk = index / chunk.count / taps / shape.offset_groups;
  const int64_t image = chunk.first_image + image_of_chunk;
  const Points<A> points = points_of(shape, offsets, masks, image, offset_group);

  PointGradient<A> gradient{A(0), A(0), A(0)};
  Point<A> point;
  if (point_at(shape, points.offsets, tap, pixel, point)) {  // the same for all lanes
    const int64_t row = image_of_chunk * chunk.count + pixel - chunk.first;
    const int64_t first = offset_group * shape.offset_group_channels();
    const T* map = input + image * shape.pixels() * shape.channels;
    int64_t pixels[4];
    A products[4];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      pixels[corner] = corner_pixel(shape, point, corner);
      products[corner] = A(0);
    }
    for (int64_t c = lane * kVector; c < shape.offset_group_channels(); c += 32 * kVector) {
      const int64_t channel = first + c;
      const auto sent = packet_at<kVector>(column_gradients + column_of(shape, chunk, channel) +
                                           (row * taps + tap) * shape.group_channels());
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        if (pixels[corner] < 0) continue;
        const auto values = packet_at<kVector>(map + pixels[corner] * shape.channels + channel);
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          products[corner] = multiply_add(widened(values.values[k]), widened(sent.values[k]), products[corner]);
        }
      }
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        products[corner] += __shfl_xor_sync(kAllLanes, products[corner], distance);
      }
    }
    gradient = point_gradient(point, points.mask(tap, plane, pixel), products);
  }
  if (lane != 0) return;
  const int64_t plane_of_tap = (image * shape.offset_groups + offset_group) * taps + tap;
  if (offset_gradients != nullptr) {
    offset_gradients[2 * plane_of_tap * plane + pixel] = gradient.y;
    offset_gradients[(2 * plane_of_tap + 1) * plane + pixel] = gradient.x;
  }
  if (mask_gradients != nullptr) mask_gradients[plane_of_tap * plane + pixel] = gradient.mask;
}

// ---- gradient of the input

// The first and last row and column of the pixels that are reached, maybe beyond the map's; last < first: none.
struct alignas(16) Box {
  int top, bottom, left, right;
};

constexpr int kNowhere = 1 << 30;

// One block = one segment; one thread = one of its points, then one number of a tree of minima and maxima.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    enclose_segments(const __grid_constant__ DeformConv shape, const __grid_constant__ Chunk chunk,
                     const A* __restrict__ offsets, const A* __restrict__ masks, Box* __restrict__ boxes) {
  __shared__ Box reached[kThreads];
  const int64_t segments = segments_of(chunk), taps = shape.taps(), index = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t in_image = index % segments * kSegment + thread;
  const int tap = static_cast<int>(index / segments % taps);
  const int64_t offset_group = index / segments / taps % shape.offset_groups;
  const int64_t image = chunk.first_image + index / segments / taps / shape.offset_groups;
  const Points<A> points = points_of(shape, offsets, masks, image, offset_group);
  Point<A> point;
  reached[thread] = {kNowhere, -kNowhere, kNowhere, -kNowhere};
  if (in_image < chunk.count && point_at(shape, points.offsets, tap, chunk.first + in_image, point)) {
    reached[thread] = {point.y, point.y + 1, point.x, point.x + 1};
  }
  __syncthreads();
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    if (thread < distance) {
      Box& mine = reached[thread];
      const Box& other = reached[thread + distance];
      mine.top = other.top < mine.top ? other.top : mine.top;
      mine.bottom = other.bottom > mine.bottom ? other.bottom : mine.bottom;
      mine.left = other.left < mine.left ? other.left : mine.left;
      mine.right = other.right > mine.right ? other.right : mine.right;
    }
    __syncthreads();
  }
  if (thread == 0) boxes[index] = reached[0];
}

// A point that reaches a tile.
template <typename A>
struct Reaching {
  int row;  // among those of its image in the chunk
  int y, x;
  A down, across, mask;
};

// The place of a thread among those of its block that are `chosen`, and how many there are. All threads must call it,
// and meet at a barrier before they call it again.
__device__ __forceinline__ int ordered_place(bool chosen, int* by_warp, int& total) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned votes = __ballot_sync(kAllLanes, chosen);
  if (lane == 0) by_warp[warp] = __popc(votes);
  __syncthreads();
  int place = __popc(votes & ((1u << lane) - 1));
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) place += by_warp[w];
    total += by_warp[w];
  }
  return place;
}

//      8 pixels
//   +-+-+-+-+-+-+-+-+    One block = one tile of 4 x 8 pixels of one image and up to 32 * kVector channels of one
//   |0|1|2|3|4|5|6|7|    offset group: 256 segments at a time it looks which boxes reach the tile, then which points of
//   +-+-+-+-+-+-+-+-+    these, and adds up what they send, always in their order.
//   |0|1|...        |    One warp = the 4 pixels of one column of the tile; one lane = kVector channels of them.
constexpr int kTileHeight = 4, kTileWidth = 8;
static_assert(kTileWidth == kWarps, "one warp per column of the tile");

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    gather_gradient(const __grid_constant__ DeformConv shape, const __grid_constant__ Chunk chunk,
                    const sum_t<T>* __restrict__ offsets, const sum_t<T>* __restrict__ masks,
                    const T* __restrict__ column_gradients, const Box* __restrict__ boxes,
                    sum_t<T>* __restrict__ input_gradient) {
  using A = sum_t<T>;
  __shared__ int found[kThreads];
  __shared__ Reaching<A> reaching[kThreads];
  __shared__ int segments_by_warp[kWarps], points_by_warp[kWarps];

  const int tiles_in_row = (shape.width + kTileWidth - 1) / kTileWidth;
  const int first_x = static_cast<int>(blockIdx.x) % tiles_in_row * kTileWidth;
  const int first_y = static_cast<int>(blockIdx.x) / tiles_in_row * kTileHeight;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int64_t group_channels = shape.offset_group_channels(), taps = shape.taps();
  const int64_t slices = (group_channels + 32 * kVector - 1) / (32 * kVector);
  const int64_t offset_group = blockIdx.z / slices;
  const int64_t in_group = (blockIdx.z % slices * 32 + lane) * kVector;
  const int64_t channel = offset_group * group_channels + in_group;
  const int64_t image_of_chunk = blockIdx.y, image = chunk.first_image + image_of_chunk;
  const int x = first_x + warp;
  const bool working = in_group < group_channels && x < shape.width;

  const Points<A> points = points_of(shape, offsets, masks, image, offset_group);
  const int64_t stride = taps * shape.group_channels();
  const T* sent =
      column_gradients + (working ? column_of(shape, chunk, channel) : 0) + image_of_chunk * chunk.count * stride;
  A* map = input_gradient + image * shape.pixels() * shape.channels + channel;
  A sums[kTileHeight][kVector];
#pragma unroll
  for (int i = 0; i < kTileHeight; ++i) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) sums[i][k] = A(0);
  }

  const int64_t segments = segments_of(chunk), candidates = taps * segments;
  boxes += (image_of_chunk * shape.offset_groups + offset_group) * candidates;
  for (int64_t first = 0; first < candidates; first += kThreads) {
    bool overlaps = false;
    if (first + thread < candidates) {
      const Box box = boxes[first + thread];
      overlaps = box.top < first_y + kTileHeight && box.bottom >= first_y && box.left < first_x + kTileWidth &&
                 box.right >= first_x;
    }
    int segment_count;
    const int segment_place = ordered_place(overlaps, segments_by_warp, segment_count);
    if (overlaps) found[segment_place] = thread;
    __syncthreads();

    // What was found is overwritten after the barrier in ordered_place, which nobody passes who still reads it.
    for (int s = 0; s < segment_count; ++s) {
      const int64_t candidate = first + found[s];
      const int tap = static_cast<int>(candidate / segments);
      const int64_t in_image = candidate % segments * kSegment + thread;
      Point<A> point{0, 0, A(0), A(0)};
      const bool reaches = in_image < chunk.count &&
                           point_at(shape, points.offsets, tap, chunk.first + in_image, point) &&
                           point.y < first_y + kTileHeight && point.y + 1 >= first_y &&
                           point.x < first_x + kTileWidth && point.x + 1 >= first_x;
      int point_count;
      const int place = ordered_place(reaches, points_by_warp, point_count);
      if (reaches) {
        const A mask = points.mask(tap, shape.out_pixels(), chunk.first + in_image);
        reaching[place] = {static_cast<int>(in_image), point.y, point.x, point.down, point.across, mask};
      }
      __syncthreads();
      for (int f = 0; working && f < point_count; ++f) {
        const Reaching<A>& from = reaching[f];
        const int right = x - from.x;
        if (right != 0 && right != 1) continue;
        const A share = (right == 1 ? from.across : A(1) - from.across) * from.mask;
        const auto values = packet_at<kVector>(sent + from.row * stride + tap * shape.group_channels());
#pragma unroll
        for (int i = 0; i < kTileHeight; ++i) {
          const int below = first_y + i - from.y;
          if (below != 0 && below != 1) continue;
          const A weight = (below == 1 ? from.down : A(1) - from.down) * share;
#pragma unroll
          for (int k = 0; k < kVector; ++k) sums[i][k] = multiply_add(weight, widened(values.values[k]), sums[i][k]);
        }
      }
    }
  }
  if (!working) return;
#pragma unroll
  for (int i = 0; i < kTileHeight; ++i) {
    const int y = first_y + i;
    if (y >= shape.height) break;
    auto* pixel = reinterpret_cast<Packet<A, kVector>*>(map + (int64_t{y} * shape.width + x) * shape.channels);
    Packet<A, kVector> result = *pixel;
#pragma unroll
    for (int k = 0; k < kVector; ++k) result.values[k] += sums[i][k];
    *pixel = result;
  }
}

// ---- sums

// One thread = one sum. `values` are repeated every `period`.
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    add(int64_t count, int64_t period, const In* __restrict__ values, Out* __restrict__ sums) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) narrowed(widened(sums[i]) + widened(values[i % period]), sums[i]);
}

// ---- launchers

constexpr const char* kTooLarge = "more images, channels or pixels than fit one call";

unsigned blocks_for(int64_t work, int64_t per_block) {
  return static_cast<unsigned>((work + per_block - 1) / per_block);
}

// The kernels of a type: sixteen bytes of channels at a time where no packet crosses a border between groups.
template <typename T>
struct Launcher {
  using A = sum_t<T>;
  static constexpr int kPacket = sizeof(T) < 8 ? 16 / sizeof(T) : 1;

  static bool packed(const DeformConv& shape) {
    return shape.group_channels() % kPacket == 0 && shape.offset_group_channels() % kPacket == 0;
  }

  static const char* columns(const DeformConv& shape, const Chunk& chunk, const void* input, const void* offsets,
                             const void* masks, void* columns, void* stream) {
    const bool packets = packed(shape);
    const int64_t work = chunk.rows() * shape.taps() * shape.channels / (packets ? kPacket : 1);
    return launch(packets ? &gather_columns<T, kPacket> : &gather_columns<T, 1>, dim3(blocks_for(work, kThreads)),
                  dim3(kThreads), 0, stream, shape, chunk, static_cast<const T*>(input), static_cast<const A*>(offsets),
                  static_cast<const A*>(masks), static_cast<T*>(columns));
  }

  static const char* points(const DeformConv& shape, const Chunk& chunk, const void* input, const void* offsets,
                            const void* masks, const void* column_gradients, void* offset_gradients,
                            void* mask_gradients, void* stream) {
    const int64_t work = chunk.rows() * shape.offset_groups * shape.taps();
    return launch(packed(shape) ? &point_gradients<T, kPacket> : &point_gradients<T, 1>, dim3(blocks_for(work, kWarps)),
                  dim3(kThreads), 0, stream, shape, chunk, static_cast<const T*>(input), static_cast<const A*>(offsets),
                  static_cast<const A*>(masks), static_cast<const T*>(column_gradients),
                  static_cast<A*>(offset_gradients), static_cast<A*>(mask_gradients));
  }

  static const char* gradient(const DeformConv& shape, const Chunk& chunk, const void* offsets, const void* masks,
                              const void* column_gradients, int* boxes, void* input_gradient, void* stream) {
    const bool packets = packed(shape);
    const int64_t lanes = 32 * (packets ? kPacket : 1);
    const int64_t slices = shape.offset_groups * ((shape.offset_group_channels() + lanes - 1) / lanes);
    const int64_t tiles =
        int64_t{1} * ((shape.height + kTileHeight - 1) / kTileHeight) * ((shape.width + kTileWidth - 1) / kTileWidth);
    if (slices > 65535 || chunk.images > 65535 || chunk.count > kNowhere) return kTooLarge;
    auto* scratch = reinterpret_cast<Box*>(boxes);
    const char* failure =
        launch(&enclose_segments<A>, dim3(static_cast<unsigned>(box_numbers(shape, chunk) / 4)), dim3(kThreads), 0,
               stream, shape, chunk, static_cast<const A*>(offsets), static_cast<const A*>(masks), scratch);
    if (failure != nullptr) return failure;
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(chunk.images), static_cast<unsigned>(slices));
    return launch(packets ? &gather_gradient<T, kPacket> : &gather_gradient<T, 1>, grid, dim3(kThreads), 0, stream,
                  shape, chunk, static_cast<const A*>(offsets), static_cast<const A*>(masks),
                  static_cast<const T*>(column_gradients), static_cast<const Box*>(scratch),
                  static_cast<A*>(input_gradient));
  }

  static const char* bias(int64_t rows, int64_t channels, const void* bias, void* output, void* stream) {
    return launch(&add<A, T>, dim3(blocks_for(rows * channels, kThreads)), dim3(kThreads), 0, stream, rows * channels,
                  channels, static_cast<const A*>(bias), static_cast<T*>(output));
  }

  static const char* product(int64_t count, const void* product, void* sums, void* stream) {
    return launch(&add<T, A>, dim3(blocks_for(count, kThreads)), dim3(kThreads), 0, stream, count, count,
                  static_cast<const T*>(product), static_cast<A*>(sums));
  }
};

template <typename Work>
const char* with_launcher(DeformType type, const Work& work) {
  switch (type) {
    case DeformType::kFloat:
      return work(Launcher<float>());
    case DeformType::kDouble:
      return work(Launcher<double>());
    case DeformType::kHalf:
      return work(Launcher<__half>());
    case DeformType::kBFloat16:
      return work(Launcher<__nv_bfloat16>());
  }
  return "unknown type";
}

}  // namespace

const char* launch_gather_columns(DeformType type, const DeformConv& shape, const Chunk& chunk, const void* input,
                                  const void* offsets, const void* masks, void* columns, void* stream) {
  return with_launcher(type, [&](auto kernels) {
    return decltype(kernels)::columns(shape, chunk, input, offsets, masks, columns, stream);
  });
}

const char* launch_point_gradients(DeformType type, const DeformConv& shape, const Chunk& chunk, const void* input,
                                   const void* offsets, const void* masks, const void* column_gradients,
                                   void* offset_gradients, void* mask_gradients, void* stream) {
  return with_launcher(type, [&](auto kernels) {
    return decltype(kernels)::points(shape, chunk, input, offsets, masks, column_gradients, offset_gradients,
                                     mask_gradients, stream);
  });
}

const char* launch_gather_gradient(DeformType type, const DeformConv& shape, const Chunk& chunk, const void* offsets,
                                   const void* masks, const void* column_gradients, int* boxes, void* input_gradient,
                                   void* stream) {
  return with_launcher(type, [&](auto kernels) {
    return decltype(kernels)::gradient(shape, chunk, offsets, masks, column_gradients, boxes, input_gradient, stream);
  });
}

const char* launch_add_bias(DeformType type, int64_t rows, int64_t channels, const void* bias, void* output,
                            void* stream) {
  return with_launcher(type,
                       [&](auto kernels) { return decltype(kernels)::bias(rows, channels, bias, output, stream); });
}

const char* launch_add_product(DeformType type, int64_t count, const void* product, void* sums, void* stream) {
  return with_launcher(type, [&](auto kernels) { return decltype(kernels)::product(count, product, sums, stream); });
}

}  // namespace mrcnn
