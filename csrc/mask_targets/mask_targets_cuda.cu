// Objects' masks cut to regions, on the device. Each region reads what kind of mask its object has; the shapes of all
// launches follow from the arguments, so nothing waits for the host. Bits are toggled by integer atomics, whose order
// makes no difference.
#include "../cuda_launch.h"
#include "mask_targets.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 128;
constexpr int kTileColumns = 32;
constexpr int64_t kMaximumBlocks = (int64_t{1} << 31) - 1;

// True for a mask that is sampled by its runs.
__device__ __forceinline__ bool has_runs(const TargetCall& call, const MaskObject& object) {
  return object.height > 0 && object.width > 0 && call.masks.run_count > 0;
}

// The object of a region; false if it is not to be found or the box is no box.
__device__ bool object_of(const TargetCall& call, int64_t region, MaskObject* object) {
  return packed_object(call.masks, call.index[region], object) && is_finite(call.boxes + 4 * region);
}

// One block = kTileColumns columns of one region whose object is made of polygons, or has no pixels. One thread = one
// edge after the other, which toggles the bits below it; then one word of the tile, in which a polygon joins those
// before it; then one value after the other.
__global__ void __launch_bounds__(kThreads)
    fill_polygons(const __grid_constant__ TargetCall call, int64_t tiles, float* __restrict__ targets) {
  const int64_t region = blockIdx.x / tiles, left = blockIdx.x % tiles * kTileColumns, size = call.size;
  const int64_t columns = size - left < kTileColumns ? size - left : kTileColumns;
  MaskObject object{};
  const bool found = object_of(call, region, &object);
  if (found && has_runs(call, object)) return;
  const bool polygons = found && object.height < 0;
  const int64_t words = (size + 31) / 32;
  auto* inside = static_cast<uint32_t*>(dynamic_shared());  // [kTileColumns, words], bit = row
  uint32_t* all = inside + kTileColumns * words;
  for (int64_t i = threadIdx.x; i < columns * words; i += kThreads) inside[i] = all[i] = 0;
  __syncthreads();
  const TargetGrid grid = target_grid(call.boxes + 4 * region, size);
  const auto toggle = [&](int64_t column, int64_t row) {
    if (row >= size) return;
    uint32_t* bits = inside + (column - left) * words;
    atomicXor(&bits[row / 32], 0xffffffffu << (row % 32));
    for (int64_t word = row / 32 + 1; word < words; ++word) atomicXor(&bits[word], 0xffffffffu);
  };
  for (int64_t q = object.first; polygons && q < object.last; ++q) {
    const int64_t first = call.masks.polygons[q], last = call.masks.polygons[q + 1];
    if (first < 0 || last > call.masks.point_count) continue;
    for (int64_t p = first + threadIdx.x; p < last; p += kThreads) {
      const int64_t next = p + 1 < last ? p + 1 : first;
      cross_columns(fine_point(call, grid, call.masks.points + 2 * p),
                    fine_point(call, grid, call.masks.points + 2 * next), left, left + columns, size, toggle);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < columns * words; i += kThreads) {
      all[i] |= inside[i];
      inside[i] = 0;
    }
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; i < columns * size; i += kThreads) {
    const int64_t y = i / columns, x = i % columns;
    targets[(region * size + y) * size + left + x] = static_cast<float>(all[x * words + y / 32] >> (y % 32) & 1);
  }
}

// Where the tables of a region lie: [0] down, [1] across.
__device__ __forceinline__ double* table_of(const TargetCall& call, double* tables, int64_t region, int axis) {
  const int64_t down = table_length(call.masks.tallest, call.size);
  return tables + region * (down + table_length(call.masks.widest, call.size)) + (axis == 0 ? 0 : down);
}

// One block = one region whose object is run-length encoded. One thread = one bin of one axis after the other: the
// weights of the mask's rows, summed up, or of its columns.
__global__ void __launch_bounds__(kThreads)
    weigh_bins(const __grid_constant__ TargetCall call, double* __restrict__ tables, int32_t* __restrict__ ranges) {
  const int64_t region = blockIdx.x, size = call.size;
  MaskObject object{};
  if (!object_of(call, region, &object) || !has_runs(call, object)) return;
  for (int64_t i = threadIdx.x; i < 2 * size; i += kThreads) {
    const int axis = i < size ? 0 : 1;
    const int64_t bin = axis == 0 ? i : i - size;
    const MappedAxis mapped = mapped_axis(call, call.boxes + 4 * region, object, axis == 0);
    const PixelRange range = weigh_bin(mapped, bin, axis == 0, table_of(call, tables, region, axis));
    ranges[4 * size * region + 2 * i] = range.low;
    ranges[4 * size * region + 2 * i + 1] = range.high;
  }
}

// One thread = one value [region, y, x] of a region whose object is run-length encoded. Where the mask is neither
// turned nor sheared it sums up the columns of its bin, each by runs; else it visits every sampling point.
__global__ void __launch_bounds__(kThreads)
    sample_runs(const __grid_constant__ TargetCall call, bool straight, double* __restrict__ tables,
                const int32_t* __restrict__ ranges, float* __restrict__ targets) {
  const int64_t size = call.size, index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t region = index / (size * size), y = index / size % size, x = index % size;
  MaskObject object{};
  if (region >= call.regions || !object_of(call, region, &object) || !has_runs(call, object)) return;
  double mean = 0;
  const double* box = call.boxes + 4 * region;
  if (straight) {
    const int32_t* range = ranges + 4 * size * region;
    const int64_t top = range[2 * y], bottom = range[2 * y + 1];
    const int64_t left = range[2 * (size + x)], right = range[2 * (size + x) + 1];
    const MappedAxis down = mapped_axis(call, box, object, true), across = mapped_axis(call, box, object, false);
    const double* sums = table_of(call, tables, region, 0) + table_place(down.slot(y), 0);
    const double* weights = table_of(call, tables, region, 1) + table_place(across.slot(x), 0);
    const int32_t* ends = call.masks.ends;
    double total = 0;
    for (int64_t column = left; column < right && top < bottom; ++column) {
      const int64_t origin = column * object.height;
      double sum = 0;
      for (int64_t k = run_at(ends, object, origin + top); k < object.last; ++k) {
        const int64_t begin = (k > object.first ? ends[k - 1] : 0) - origin, end = ends[k] - origin;
        if (begin >= bottom) break;
        if (in_foreground(object, k)) sum += sums[end < bottom ? end : bottom] - sums[begin > top ? begin : top];
      }
      total += weights[column] * sum;
    }
    const int64_t count = down.samples.points * across.samples.points;
    mean = count > 0 ? total / static_cast<double>(count) : 0;
  } else {
    mean = sampled_mean(call, box, object, y, x);
  }
  targets[index] = as_target(call, mean);
}

}  // namespace

const char* launch_mask_targets(const TargetCall& call, double* tables, int32_t* ranges, float* targets, void* stream) {
  const int64_t tiles = (call.size + kTileColumns - 1) / kTileColumns, words = (call.size + 31) / 32;
  const int64_t blocks = (call.regions * call.size * call.size + kThreads - 1) / kThreads;
  if (call.regions * tiles > kMaximumBlocks || blocks > kMaximumBlocks) return "more regions than fit one call";
  const char* failure = launch(&fill_polygons, dim3(static_cast<unsigned>(call.regions * tiles)), dim3(kThreads),
                               2 * kTileColumns * words * sizeof(uint32_t), stream, call, tiles, targets);
  if (failure != nullptr || call.masks.run_count == 0) return failure;
  const bool straight = is_straight(call);
  if (straight) {
    failure =
        launch(&weigh_bins, dim3(static_cast<unsigned>(call.regions)), dim3(kThreads), 0, stream, call, tables, ranges);
    if (failure != nullptr) return failure;
  }
  return launch(&sample_runs, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, call, straight, tables,
                static_cast<const int32_t*>(ranges), targets);
}

}  // namespace mrcnn
