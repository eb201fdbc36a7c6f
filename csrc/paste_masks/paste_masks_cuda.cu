// Masks of a fixed resolution put into the image, on the device. Edges are counted, each column's place is summed up
// and the edges are found once more and written there: no image is made, nothing is sorted and nothing waits for the
// host.
#include "../cuda_launch.h"
#include "paste_masks.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 128;
constexpr int kScanThreads = 256, kScanWarps = kScanThreads / 32;
constexpr int kTileRows = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ PasteAxis rows_of(const PasteCall& call, int64_t n) {
  return paste_axis(call.boxes[4 * n + 1], call.boxes[4 * n + 3], call.size);
}

__device__ __forceinline__ PasteAxis columns_of(const PasteCall& call, int64_t n) {
  return paste_axis(call.boxes[4 * n], call.boxes[4 * n + 2], call.size);
}

// The place of a column, and whether the mask reaches it.
__device__ bool reached(const PasteAxis& axis, int64_t x, int64_t width, PastePlace* place) {
  if (x < 0 || x >= width) return false;
  const double position = paste_position(axis, x);
  if (!(position >= -1 && position < static_cast<double>(axis.bins))) return false;
  *place = paste_place(axis, x);
  return true;
}

__device__ bool holds_pixel(const PasteCall& call, const float* mask, const PasteAxis& rows, const PasteAxis& columns,
                            int64_t y, int64_t x) {
  PastePlace column;
  return reached(columns, x, call.width, &column) &&
         holds(mask, call.size, paste_place(rows, y), column, call.threshold);
}

// One block = kThreads columns of one mask's image. One thread = one column: it walks down the cells of the rows and
// counts where the mask begins and ends - or, with the columns' places known, writes those pixels. A run that goes on
// at the top of the next column has no edge there: each of the two columns looks at the other's end.
__global__ void __launch_bounds__(kThreads)
    walk_columns(const __grid_constant__ PasteCall call, int64_t blocks, bool writing, int64_t capacity,
                 const int64_t* __restrict__ starts, int32_t* __restrict__ offsets, int32_t* __restrict__ edges) {
  // Per cell its first row and how far that one and the row before it are into their cells.
  auto* first_rows = static_cast<int32_t*>(dynamic_shared());                    // [size + 2]
  auto* first_fractions = reinterpret_cast<float*>(first_rows + call.size + 2);  // [size + 2]
  float* last_fractions = first_fractions + call.size + 2;                       // [size + 2]
  const int64_t n = blockIdx.x / blocks;
  const int64_t x = blockIdx.x % blocks * kThreads + threadIdx.x;
  const PasteAxis rows = rows_of(call, n), columns = columns_of(call, n);
  const bool empty = !has_pixels(rows) || !has_pixels(columns);
  if (!empty) {
    for (int64_t k = threadIdx.x; k < call.size + 2; k += kThreads) {
      const int64_t row = first_pixel(rows, k - 1, call.height);
      first_rows[k] = static_cast<int32_t>(row);
      first_fractions[k] = row < call.height ? paste_place(rows, row).fraction : 0.f;
      last_fractions[k] = row > 0 ? paste_place(rows, row - 1).fraction : 0.f;
    }
  }
  __syncthreads();
  if (x >= call.width) return;
  int32_t* const count = offsets + n * call.width + x;
  PastePlace column;
  if (empty || !reached(columns, x, call.width, &column)) {
    if (!writing) *count = 0;
    return;
  }
  const float* mask = call.masks + n * call.size * call.size;
  const int64_t top = x * call.height;
  int64_t place = writing ? starts[n] + *count : 0;
  const auto edge = [&](int64_t row) {
    if (writing && place < capacity) edges[place] = static_cast<int32_t>(top + row);
    ++place;
  };
  bool inside = false;
  float above = 0.f;
  for (int64_t k = 0; k <= call.size; ++k) {
    const float below = value_across(mask, call.size, k, column);
    const int64_t first = first_rows[k], last = first_rows[k + 1] - 1;
    if (first <= last) {
      const bool starts_inside = mixed(above, below, first_fractions[k]) >= call.threshold;
      const bool ends_inside = mixed(above, below, last_fractions[k + 1]) >= call.threshold;
      if (starts_inside != inside) {
        const bool goes_on = starts_inside && first == 0 &&
                             holds_pixel(call, mask, rows, columns, call.height - 1, x - 1) &&
                             first_rows[call.size + 1] == call.height;
        if (!goes_on) edge(first);
      }
      if (ends_inside != starts_inside) {
        int64_t same = first, other = last;
        while (other - same > 1) {
          const int64_t middle = (same + other) / 2;
          const bool held = mixed(above, below, paste_place(rows, middle).fraction) >= call.threshold;
          (held == starts_inside ? same : other) = middle;
        }
        edge(other);
      }
      inside = ends_inside;
    }
    above = below;
  }
  if (inside) {
    const int64_t end = first_rows[call.size + 1];
    const bool goes_on = end == call.height && first_rows[0] == 0 && holds_pixel(call, mask, rows, columns, 0, x + 1);
    if (!goes_on) edge(end);
  }
  if (!writing) *count = static_cast<int32_t>(place);
}

// The sum of `value` over the threads before this one, and over all; every thread of the block calls it.
__device__ int64_t sum_before(int64_t value, int64_t* sums, int64_t* total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int64_t sum = value;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(distance));
    if (lane >= distance) sum += other;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  int64_t before = 0;
  *total = 0;
  for (int w = 0; w < kScanWarps; ++w) {
    if (w < warp) before += sums[w];
    *total += sums[w];
  }
  __syncthreads();
  return before + sum - value;
}

// One block = one mask: the counts of its columns become the sums of those before; the sum of all goes to starts[n +
// 1].
__global__ void __launch_bounds__(kScanThreads)
    place_columns(int64_t width, int32_t* __restrict__ offsets, int64_t* __restrict__ starts) {
  __shared__ int64_t sums[kScanWarps];
  int32_t* const counts = offsets + blockIdx.x * width;
  int64_t done = 0;
  for (int64_t from = 0; from < width; from += kScanThreads) {
    const int64_t x = from + threadIdx.x;
    int64_t total = 0;
    const int64_t before = sum_before(x < width ? counts[x] : 0, sums, &total);
    if (x < width) counts[x] = static_cast<int32_t>(done + before);
    done += total;
  }
  if (threadIdx.x == 0) starts[blockIdx.x + 1] = done;
}

// One block for the call: the sums of the masks become where each begins.
__global__ void __launch_bounds__(kScanThreads) place_masks(int64_t count, int64_t* __restrict__ starts) {
  __shared__ int64_t sums[kScanWarps];
  if (threadIdx.x == 0) starts[0] = 0;
  int64_t done = 0;
  for (int64_t from = 0; from < count; from += kScanThreads) {
    const int64_t n = from + threadIdx.x;
    const int64_t value = n < count ? starts[n + 1] : 0;
    int64_t total = 0;
    const int64_t before = sum_before(value, sums, &total);
    if (n < count) starts[n + 1] = done + before + value;
    done += total;
  }
}

// One block = kThreads columns of kTileRows rows of one image. One thread = one column of them: it writes kTileRows
// pixels, whose places along the rows the block shares.
__global__ void __launch_bounds__(kThreads)
    fill_tiles(const __grid_constant__ PasteCall call, int64_t across, int64_t down, bool* __restrict__ images) {
  __shared__ PastePlace places[kTileRows];
  __shared__ bool reaches[kTileRows];
  const int64_t n = blockIdx.x / (across * down), tile = blockIdx.x % (across * down);
  const int64_t x = tile % across * kThreads + threadIdx.x, top = tile / across * kTileRows;
  const PasteAxis rows = rows_of(call, n), columns = columns_of(call, n);
  const bool empty = !has_pixels(rows) || !has_pixels(columns);
  if (threadIdx.x < kTileRows) {
    const int row = static_cast<int>(threadIdx.x);
    places[row] = {0, 0.f};
    reaches[row] = !empty && reached(rows, top + row, call.height, &places[row]);
  }
  __syncthreads();
  if (x >= call.width) return;
  const float* mask = call.masks + n * call.size * call.size;
  PastePlace column{0, 0.f};
  const bool wanted = !empty && reached(columns, x, call.width, &column);
  for (int row = 0; row < kTileRows && top + row < call.height; ++row) {
    images[(n * call.height + top + row) * call.width + x] =
        wanted && reaches[row] && holds(mask, call.size, places[row], column, call.threshold);
  }
}

constexpr int64_t kMaximumBlocks = (int64_t{1} << 31) - 1;

}  // namespace

const char* launch_paste_edges(const PasteCall& call, int64_t capacity, int32_t* offsets, int64_t* starts,
                               int32_t* edges, void* stream) {
  const int64_t blocks = (call.width + kThreads - 1) / kThreads;
  if (call.count * blocks > kMaximumBlocks) return "more masks than fit one call";
  const dim3 grid(static_cast<unsigned>(call.count * blocks));
  const size_t shared = (call.size + 2) * (sizeof(int32_t) + 2 * sizeof(float));
  const int64_t* none = nullptr;
  const char* failure =
      launch(&walk_columns, grid, dim3(kThreads), shared, stream, call, blocks, false, capacity, none, offsets, edges);
  if (failure != nullptr) return failure;
  failure = launch(&place_columns, dim3(static_cast<unsigned>(call.count)), dim3(kScanThreads), 0, stream, call.width,
                   offsets, starts);
  if (failure != nullptr) return failure;
  failure = launch(&place_masks, dim3(1), dim3(kScanThreads), 0, stream, call.count, starts);
  if (failure != nullptr) return failure;
  return launch(&walk_columns, grid, dim3(kThreads), shared, stream, call, blocks, true, capacity,
                static_cast<const int64_t*>(starts), offsets, edges);
}

const char* launch_paste_dense(const PasteCall& call, bool* images, void* stream) {
  const int64_t across = (call.width + kThreads - 1) / kThreads, down = (call.height + kTileRows - 1) / kTileRows;
  if (call.count * across * down > kMaximumBlocks) return "more masks than fit one call";
  return launch(&fill_tiles, dim3(static_cast<unsigned>(call.count * across * down)), dim3(kThreads), 0, stream, call,
                across, down, images);
}

}  // namespace mrcnn
