// RoIAlign over a pyramid of channels-last maps. Nothing is sorted by level and nothing waits for the host: each block
// finds its level itself. The gradient is gathered, pixel by pixel, so there are no atomics and every run gives the
// same bits.
#include "roi_align_device.h"

namespace mrcnn {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// ---- forward

// One block = one region, or every gridDim.y-th row of warps of it where regions alone would not fill a device. One
// warp = one bin after the other. One lane = kVector neighbouring channels of the bin, and then those 32 * kVector
// further on. The weights along both axes are shared by the block.
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads, 2)
    pool_regions(const __grid_constant__ FeatureMaps maps, const __grid_constant__ Pooling pooling,
                 const sum_t<T>* __restrict__ regions, int capacity, T* __restrict__ pooled) {
  using A = sum_t<T>;
  __shared__ RegionAxes<A> axes;
  const int64_t index = blockIdx.x;
  const BlockRegion<A> region = block_region(regions + 5 * index, maps, pooling, capacity, &axes);
  const int64_t channels = maps.channels, width = maps.width[region.level];
  const T* map =
      static_cast<const T*>(maps.data[region.level]) + region.image * maps.height[region.level] * width * channels;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int first = static_cast<int>(blockIdx.y) * kWarps + thread / 32, step = static_cast<int>(gridDim.y) * kWarps;
  for (int bin = first; bin < pooling.height * pooling.width; bin += step) {
    T* out = pooled + (index * pooling.height * pooling.width + bin) * channels;
    for (int64_t c = lane * kVector; c < channels; c += 32 * kVector) {
      A sums[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums[k] = A(0);
      region.visit(pooling, bin / pooling.width, bin % pooling.width, [&](int row, int column, A weight) {
        const auto pixel = packet_at<kVector>(map + (row * width + column) * channels + c);
#pragma unroll
        for (int k = 0; k < kVector; ++k) sums[k] = multiply_add(weight, widened(pixel.values[k]), sums[k]);
      });
      Packet<T, kVector> result;
#pragma unroll
      for (int k = 0; k < kVector; ++k) narrowed(sums[k], result.values[k]);
      *reinterpret_cast<Packet<T, kVector>*>(out + c) = result;
    }
  }
}

// ---- backward: first, which regions reach which rows

// Tiles of 4 x 8 pixels; a row of tiles is a band.
constexpr int kTileHeight = 4, kTileWidth = 8;
static_assert(kTileWidth == kWarps, "one warp per column of the tile");

// Where the bands and the blocks of each level begin. Blocks run over levels, images, bands, tiles and channels, the
// last one fastest.
struct Tiling {
  int64_t bands[kMaximumLevels + 1], blocks[kMaximumLevels + 1];
  int channel_blocks;
};

struct Place {
  int level;
  int64_t image;
  int band, tile, channel_block;
};

__host__ __device__ __forceinline__ int tiles_over(int length, int tile) {
  return (length + tile - 1) / tile;
}

__device__ __forceinline__ Place place_of_band(int64_t index, const FeatureMaps& maps, const Tiling& tiling) {
  Place place{};
  while (index >= tiling.bands[place.level + 1]) ++place.level;
  const int64_t rest = index - tiling.bands[place.level];
  const int bands = tiles_over(maps.height[place.level], kTileHeight);
  place.image = rest / bands;
  place.band = static_cast<int>(rest % bands);
  return place;
}

__device__ __forceinline__ Place place_of_block(int64_t index, const FeatureMaps& maps, const Tiling& tiling) {
  Place place{};
  while (index >= tiling.blocks[place.level + 1]) ++place.level;
  int64_t rest = index - tiling.blocks[place.level];
  const int tiles = tiles_over(maps.width[place.level], kTileWidth);
  const int bands = tiles_over(maps.height[place.level], kTileHeight);
  place.channel_block = static_cast<int>(rest % tiling.channel_blocks);
  rest /= tiling.channel_blocks;
  place.tile = static_cast<int>(rest % tiles);
  rest /= tiles;
  place.band = static_cast<int>(rest % bands);
  place.image = rest / bands;
  return place;
}

// True if any sample of an axis may touch one of `count` pixels from `first`; two pixels of margin cover the bilinear
// neighbour and samples clamped from outside, the rest covers rounding.
template <typename A>
__device__ __forceinline__ bool reaches(const AxisGeometry<A>& axis, int first, int count) {
  const A end = axis.start + axis.bin * A(axis.bins);
  const A low = axis.start < end ? axis.start : end, high = axis.start < end ? end : axis.start;
  const A size = -low > high ? -low : high, margin = A(2) + size * A(1e-6);
  return high + margin > A(first) && low - margin < A(first + count);
}

// One block = one band of one image: a bit per region that reaches it. One thread = one region after the other, 256
// apart; a warp writes 32 bits at a time. The first band of an image also leaves the geometry of all its regions.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    mark_bands(const __grid_constant__ FeatureMaps gradients, const __grid_constant__ Pooling pooling,
               const __grid_constant__ Tiling tiling, const A* __restrict__ regions, int64_t count,
               RegionAxes<A>* __restrict__ axes, unsigned* __restrict__ marks, int64_t words) {
  const Place place = place_of_band(blockIdx.x, gradients, tiling);
  for (int64_t first = 0; first < count; first += kThreads) {
    const int64_t candidate = first + threadIdx.x;
    bool reached = false;
    if (candidate < count) {
      const A* roi = regions + 5 * candidate;
      if (lies_on_an_image(roi, gradients) && static_cast<int64_t>(roi[0]) == place.image &&
          assigned_level(roi + 1, pooling) == place.level) {
        const RegionAxes<A> found = region_axes(roi, gradients, pooling, place.level);
        if (place.band == 0) axes[candidate] = found;
        reached = reaches(found.rows, place.band * kTileHeight, kTileHeight);
      }
    }
    const unsigned votes = __ballot_sync(kAllLanes, reached);
    const int64_t word = candidate / 32;
    if (threadIdx.x % 32 == 0 && word < words) marks[int64_t{blockIdx.x} * words + word] = votes;
  }
}

// ---- backward: then, what they send

// Regions whose marks are read at a time, and regions whose weights are made at a time.
constexpr int kRound = 4 * kThreads, kGroup = 8;

// Told how many blocks share a multiprocessor, the compiler keeps everything in registers; left alone it spills a few.
template <typename T>
constexpr int kBlocksAtATime = sizeof(T) == 8 ? 2 : 3;

struct BinRange {
  int first, last;
};

// The bins that may touch one of `count` pixels from `first`; weights that are zero decide.
template <typename A>
__device__ __forceinline__ BinRange bins_over(const AxisGeometry<A>& axis, int first, int count) {
  if (!(axis.bin > A(0))) return {0, axis.bins};
  const A origin = axis.start / axis.bin, pixel = A(1) / axis.bin;  // in bins
  const A slack = A(0.01) + A(1e-6) * (origin < A(0) ? -origin : origin);
  const A low = A(first - 1) * pixel - origin - slack, high = A(first + count) * pixel - origin + slack;
  const A bins = static_cast<A>(axis.bins);
  return {low > A(0) ? static_cast<int>(low < bins ? low : bins) : 0,
          high < bins ? static_cast<int>(high > A(-1) ? high + A(1) : A(0)) : axis.bins};
}

//      8 pixels
//   +-+-+-+-+-+-+-+-+    One block = one tile of 4 x 8 pixels of one image and 32 * kVector of its channels: of the
//   |0|1|2|3|4|5|6|7|    regions marked for its band it finds those that reach the tile, in their order, makes the
//   +-+-+-+-+-+-+-+-+    weights of a group of them, and adds up what their bins send.
//   |0|1|...        |    One warp = the 4 pixels of one column of the tile; one lane = kVector channels of them.
//   +-+-+-+-+-+-+-+-+    Every pixel is written once, so the gradient needs no zeros beforehand.
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads, kBlocksAtATime<T>)
    gather_gradient(const __grid_constant__ FeatureMaps gradients, const __grid_constant__ Pooling pooling,
                    const __grid_constant__ Tiling tiling, const RegionAxes<sum_t<T>>* __restrict__ axes,
                    const unsigned* __restrict__ marks, int64_t words, int group, const T* __restrict__ pooled) {
  using A = sum_t<T>;
  __shared__ int found[kRound];
  __shared__ int found_by_warp[kWarps];
  __shared__ BinRange row_bins[kGroup], column_bins[kGroup][kTileWidth];
  auto* row_weights = static_cast<A*>(dynamic_shared());                   // [group][pooling.height][kTileHeight]
  A* column_weights = row_weights + group * kTileHeight * pooling.height;  // [group][kTileWidth][pooling.width]

  const Place place = place_of_block(blockIdx.x, gradients, tiling);
  const int height = gradients.height[place.level], width = gradients.width[place.level];
  const int first_x = place.tile * kTileWidth, first_y = place.band * kTileHeight;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int64_t channels = gradients.channels, channel = (int64_t{place.channel_block} * 32 + lane) * kVector;
  marks += (tiling.bands[place.level] + place.image * tiles_over(height, kTileHeight) + place.band) * words;

  A sums[kTileHeight][kVector];
#pragma unroll
  for (int i = 0; i < kTileHeight; ++i) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) sums[i][k] = A(0);
  }
  for (int64_t first_word = 0; first_word < words; first_word += kRound / 32) {
    // Each thread judges four regions in a row.
    const int64_t word = first_word + thread / 8;
    const int candidate = static_cast<int>(word * 32) + thread % 8 * 4;
    unsigned reached = word < words ? marks[word] >> (thread % 8 * 4) & 15u : 0u;
#pragma unroll 1
    for (unsigned rest = reached; rest != 0; rest &= rest - 1) {
      const int bit = __ffs(static_cast<int>(rest)) - 1;
      if (!reaches(axes[candidate + bit].columns, first_x, kTileWidth)) reached &= ~(1u << bit);
    }
    int place_in_warp = __popc(reached);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, place_in_warp, distance);
      if (lane >= distance) place_in_warp += before;
    }
    if (lane == 31) found_by_warp[warp] = place_in_warp;
    __syncthreads();
    int at = place_in_warp - __popc(reached), total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) at += found_by_warp[w];
      total += found_by_warp[w];
    }
#pragma unroll 1
    for (; reached != 0; reached &= reached - 1) found[at++] = candidate + __ffs(static_cast<int>(reached)) - 1;
    __syncthreads();

#pragma unroll 1
    for (int begin = 0; begin < total; begin += group) {
      const int size = total - begin < group ? total - begin : group;
      const int row_entries = kTileHeight * pooling.height, column_entries = kTileWidth * pooling.width;
#pragma unroll 1
      for (int i = thread; i < size * (row_entries + column_entries); i += kThreads) {
        const bool vertical = i < size * row_entries;
        const int entry = vertical ? i : i - size * row_entries;
        const int member = entry / (vertical ? row_entries : column_entries);
        const int rest = entry % (vertical ? row_entries : column_entries);
        const RegionAxes<A>& region = axes[found[begin + member]];
        const int bin = vertical ? rest / kTileHeight : rest % pooling.width;
        const int pixel = vertical ? first_y + rest % kTileHeight : first_x + rest / pooling.width;
        (vertical ? row_weights : column_weights)[entry] =
            pixel_weight(vertical ? region.rows : region.columns, bin, pixel);
      }
      if (thread < size * (kTileWidth + 1)) {
        const int member = thread / (kTileWidth + 1), column = thread % (kTileWidth + 1);
        const RegionAxes<A>& region = axes[found[begin + member]];
        if (column < kTileWidth) {
          column_bins[member][column] = bins_over(region.columns, first_x + column, 1);
        } else {
          row_bins[member] = bins_over(region.rows, first_y, kTileHeight);
        }
      }
      __syncthreads();
      if (channel < channels) {
#pragma unroll 1
        for (int member = 0; member < size; ++member) {
          const T* bins = pooled + int64_t{found[begin + member]} * pooling.height * pooling.width * channels + channel;
          const BinRange row_range = row_bins[member], column_range = column_bins[member][warp];
#pragma unroll 1
          for (int x = column_range.first; x < column_range.last; ++x) {
            const A column_weight = column_weights[(member * kTileWidth + warp) * pooling.width + x];
            if (column_weight == A(0)) continue;
            for (int y = row_range.first; y < row_range.last; ++y) {
              const A* rows = row_weights + (member * pooling.height + y) * kTileHeight;
              bool needed = false;
#pragma unroll
              for (int i = 0; i < kTileHeight; ++i) needed |= rows[i] != A(0);
              if (!needed) continue;
              const auto bin = packet_at<kVector>(bins + (int64_t{y} * pooling.width + x) * channels);
#pragma unroll
              for (int i = 0; i < kTileHeight; ++i) {
                if (rows[i] == A(0)) continue;  // an infinite bin must not reach where it has no weight
                const A weight = rows[i] * column_weight;
#pragma unroll
                for (int k = 0; k < kVector; ++k) {
                  sums[i][k] = multiply_add(weight, widened(bin.values[k]), sums[i][k]);
                }
              }
            }
          }
        }
      }
      __syncthreads();  // the weights are overwritten next
    }
  }
  const int x = first_x + warp;
  if (x >= width || channel >= channels) return;
  T* map = static_cast<T*>(gradients.data[place.level]) + place.image * height * width * channels + channel;
#pragma unroll
  for (int i = 0; i < kTileHeight; ++i) {
    const int y = first_y + i;
    if (y >= height) break;
    Packet<T, kVector> result;
#pragma unroll
    for (int k = 0; k < kVector; ++k) narrowed(sums[i][k], result.values[k]);
    *reinterpret_cast<Packet<T, kVector>*>(map + (int64_t{y} * width + x) * channels) = result;
  }
}

// ---- launchers

constexpr int64_t kMostBlocks = 0x7fffffff;

template <typename T, int kVector>
const char* pool(const FeatureMaps& maps, const Pooling& pooling, const void* regions, int64_t count, void* pooled,
                 void* stream) {
  using A = sum_t<T>;
  const TableSize<A> table(pooling);
  if (!table.fits()) return "output_size is too large for the GPU";
  if (count > kMostBlocks) return "more boxes than fit one call";
  // About as many blocks as the largest devices run at a time.
  constexpr int64_t kEnoughBlocks = 1024;
  const int64_t rows_of_warps = (int64_t{1} * pooling.height * pooling.width + kWarps - 1) / kWarps;
  const int64_t wanted = (kEnoughBlocks + count - 1) / count;
  const int64_t parts = wanted < rows_of_warps ? wanted : rows_of_warps;
  return launch(&pool_regions<T, kVector>, dim3(static_cast<unsigned>(count), static_cast<unsigned>(parts)),
                dim3(kThreads), table.bytes, stream, maps, pooling, static_cast<const A*>(regions), table.capacity,
                static_cast<T*>(pooled));
}

Tiling tiled(const FeatureMaps& gradients, const Pooling& pooling, int vector) {
  Tiling tiling{};
  tiling.channel_blocks = static_cast<int>((gradients.channels + 32 * vector - 1) / (32 * vector));
  for (int level = 0; level < pooling.levels; ++level) {
    const int64_t bands = gradients.images * tiles_over(gradients.height[level], kTileHeight);
    const int64_t blocks = bands * tiles_over(gradients.width[level], kTileWidth) * tiling.channel_blocks;
    tiling.bands[level + 1] = tiling.bands[level] + bands;
    tiling.blocks[level + 1] = tiling.blocks[level] + blocks;
  }
  return tiling;
}

template <typename T, int kVector>
const char* gather(const FeatureMaps& gradients, const Pooling& pooling, const void* regions, int64_t count,
                   const void* pooled, void* workspace, void* stream) {
  using A = sum_t<T>;
  constexpr size_t kRoom = kSharedBytes - kRound * sizeof(int) - 2048;  // beside what the kernel declares itself
  const size_t member = (kTileHeight * pooling.height + kTileWidth * pooling.width) * sizeof(A);
  if (member > kRoom) return "output_size is too large for the GPU";
  const int group = member * kGroup <= kRoom / 2 ? kGroup : 1;
  const Tiling tiling = tiled(gradients, pooling, kVector);
  const int64_t bands = tiling.bands[pooling.levels], blocks = tiling.blocks[pooling.levels], words = (count + 31) / 32;
  if (blocks == 0) return nullptr;
  if (blocks > kMostBlocks || bands > kMostBlocks || count > kMostBlocks)
    return "more pixels or boxes than fit one call";
  auto* axes = static_cast<RegionAxes<A>*>(workspace);
  auto* marks = reinterpret_cast<unsigned*>(axes + count);
  if (count > 0) {
    const char* failure = launch(&mark_bands<A>, dim3(static_cast<unsigned>(bands)), dim3(kThreads), 0, stream,
                                 gradients, pooling, tiling, static_cast<const A*>(regions), count, axes, marks, words);
    if (failure != nullptr) return failure;
  }
  return launch(&gather_gradient<T, kVector>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), group * member,
                stream, gradients, pooling, tiling, static_cast<const RegionAxes<A>*>(axes),
                static_cast<const unsigned*>(marks), words, group, static_cast<const T*>(pooled));
}

}  // namespace

// Sixteen bytes at a time where the channels allow it; half precision exists only so (see packed_channels).
const char* launch_roi_align(ElementType type, const FeatureMaps& maps, const Pooling& pooling, const void* regions,
                             int64_t count, void* pooled, void* stream) {
  if (count == 0) return nullptr;
  switch (type) {
    case ElementType::kFloat:
      return maps.channels % 4 == 0 ? pool<float, 4>(maps, pooling, regions, count, pooled, stream)
                                    : pool<float, 1>(maps, pooling, regions, count, pooled, stream);
    case ElementType::kDouble:
      return pool<double, 1>(maps, pooling, regions, count, pooled, stream);
    case ElementType::kHalf:
      return pool<__half, 8>(maps, pooling, regions, count, pooled, stream);
    case ElementType::kBFloat16:
      return pool<__nv_bfloat16, 8>(maps, pooling, regions, count, pooled, stream);
  }
  return "unknown type";
}

int64_t roi_align_workspace(const FeatureMaps& gradients, const Pooling& pooling, int64_t count) {
  const int64_t bands = tiled(gradients, pooling, 1).bands[pooling.levels], words = (count + 31) / 32;
  return count * static_cast<int64_t>(sizeof(RegionAxes<double>)) +
         bands * words * static_cast<int64_t>(sizeof(unsigned));
}

const char* launch_roi_align_backward(ElementType type, const FeatureMaps& gradients, const Pooling& pooling,
                                      const void* regions, int64_t count, const void* pooled_gradient, void* workspace,
                                      void* stream) {
  switch (type) {
    case ElementType::kFloat:
      return gradients.channels % 4 == 0
                 ? gather<float, 4>(gradients, pooling, regions, count, pooled_gradient, workspace, stream)
                 : gather<float, 1>(gradients, pooling, regions, count, pooled_gradient, workspace, stream);
    case ElementType::kDouble:
      return gather<double, 1>(gradients, pooling, regions, count, pooled_gradient, workspace, stream);
    case ElementType::kHalf:
      return gather<__half, 8>(gradients, pooling, regions, count, pooled_gradient, workspace, stream);
    case ElementType::kBFloat16:
      return gather<__nv_bfloat16, 8>(gradients, pooling, regions, count, pooled_gradient, workspace, stream);
  }
  return "unknown type";
}

}  // namespace mrcnn
