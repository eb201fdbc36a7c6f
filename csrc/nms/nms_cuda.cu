// Non-maximum suppression on the device, without a word to the host: every pair of boxes is compared in parallel into a
// bit mask, then one block walks through the mask in order of the scores. Where the mask would take more memory than it
// may, both are done for some rows of it after the other, and what has been suppressed by then is not compared again.
#include "../cuda_launch.h"
#include "nms.h"

namespace mrcnn {
namespace {

//             column block (64 boxes)
//            +------+------+------+
//   row      |  \ . |   .  |   .  |     One block = one 64 x 64 square on or above the diagonal.
//   block    +------+------+------+     One thread = one box of the row block; it writes one word: bit j is set if it
//            |      |  \ . |   .  |     overlaps box j of the column block too much, j after it and of its group.
//            +------+------+------+
//            |      |      |  \ . |     The rows begin at `first`, a row block; columns left of it are done with.
//            +------+------+------+
template <typename T>
__global__ void compare_boxes(const T* __restrict__ boxes, const int64_t* __restrict__ groups, int64_t n, T threshold,
                              int64_t first, const uint64_t* __restrict__ removed, int64_t blocks,
                              uint64_t* __restrict__ mask) {
  const int64_t row_block = first + blockIdx.y, column_block = first + blockIdx.x;
  if (row_block > column_block) return;
  __shared__ T others[kNmsBlock * 4];
  __shared__ int64_t other_groups[kNmsBlock];
  const int64_t first_row = row_block * kNmsBlock, first_column = column_block * kNmsBlock;
  const int thread = static_cast<int>(threadIdx.x);
  const int columns = static_cast<int>(n - first_column < kNmsBlock ? n - first_column : kNmsBlock);
  if (thread < columns) {
    for (int k = 0; k < 4; ++k) others[4 * thread + k] = boxes[4 * (first_column + thread) + k];
    other_groups[thread] = groups == nullptr ? 0 : groups[first_column + thread];
  }
  __syncthreads();
  const int64_t row = first_row + thread;
  if (row >= n) return;
  uint64_t word = 0;
  // Before the first rows are decided upon, nothing has been removed - nor have the words been cleared.
  if (first == 0 || (removed[row_block] >> thread & 1) == 0) {
    const T box[4] = {boxes[4 * row], boxes[4 * row + 1], boxes[4 * row + 2], boxes[4 * row + 3]};
    const int64_t group = groups == nullptr ? 0 : groups[row];
    for (int j = row_block == column_block ? thread + 1 : 0; j < columns; ++j) {
      if (group == other_groups[j] && overlaps(box, others + 4 * j, threshold)) word |= uint64_t{1} << j;
    }
  }
  mask[(row - first * kNmsBlock) * blocks + column_block] = word;
}

// One block for the whole pass. Blocks of 64 boxes in turn: warp 0 decides which of them stay - a box does unless one
// that stays has set its bit - and then all threads, one word each, mark what the new ones suppress further down.
__global__ void decide(const uint64_t* __restrict__ mask, int64_t n, int64_t first, int64_t last, int64_t blocks,
                       uint64_t* removed, bool* __restrict__ keep) {
  __shared__ uint64_t kept;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (first == 0) {
    for (int64_t j = thread; j < blocks; j += threads) removed[j] = 0;
    __syncthreads();
  }
  for (int64_t block = first; block < last; ++block) {
    const int64_t first_box = block * kNmsBlock;
    const uint64_t* rows = mask + (block - first) * kNmsBlock * blocks;
    const int count = static_cast<int>(n - first_box < kNmsBlock ? n - first_box : kNmsBlock);
    if (thread < 32) {
      // Each lane holds the words of two boxes on the diagonal; they are handed round in order.
      const uint64_t low = thread < count ? rows[thread * blocks + block] : 0;
      const uint64_t high = thread + 32 < count ? rows[(thread + 32) * blocks + block] : 0;
      uint64_t gone = removed[block], staying = 0;
      for (int i = 0; i < count; ++i) {
        const uint64_t word = __shfl_sync(0xffffffffu, i < 32 ? low : high, i & 31);
        if ((gone >> i & 1) == 0) {
          staying |= uint64_t{1} << i;
          gone |= word;
        }
      }
      if (thread == 0) kept = staying;
    }
    __syncthreads();
    const uint64_t staying = kept;
    for (int64_t j = block + 1 + thread; j < blocks; j += threads) {
      uint64_t word = removed[j];
      for (uint64_t rest = staying; rest != 0; rest &= rest - 1) {
        word |= rows[(__ffsll(static_cast<long long>(rest)) - 1) * blocks + j];
      }
      removed[j] = word;
    }
    if (thread < count) keep[first_box + thread] = (staying >> thread & 1) != 0;
    __syncthreads();
  }
}

}  // namespace

template <typename T>
const char* launch_nms(const T* boxes, const int64_t* groups, int64_t n, T threshold, uint64_t* scratch, bool* keep,
                       void* stream, int64_t mask_words) {
  if (n > kNmsBoxes) return "more boxes than fit one call (2147483647)";
  const int64_t blocks = nms_blocks(n), step = nms_row_blocks(n, mask_words);
  uint64_t *mask = scratch, *removed = scratch + kNmsBlock * step * blocks;
  for (int64_t first = 0; first < blocks; first += step) {
    const int64_t last = first + step < blocks ? first + step : blocks;
    const dim3 squares(static_cast<unsigned>(blocks - first), static_cast<unsigned>(last - first));
    const char* failure = launch(&compare_boxes<T>, squares, dim3(kNmsBlock), 0, stream, boxes, groups, n, threshold,
                                 first, static_cast<const uint64_t*>(removed), blocks, mask);
    if (failure != nullptr) return failure;
    failure = launch(&decide, dim3(1), dim3(512), 0, stream, static_cast<const uint64_t*>(mask), n, first, last, blocks,
                     removed, keep);
    if (failure != nullptr) return failure;
  }
  return nullptr;
}

template const char* launch_nms(const float*, const int64_t*, int64_t, float, uint64_t*, bool*, void*, int64_t);
template const char* launch_nms(const double*, const int64_t*, int64_t, double, uint64_t*, bool*, void*, int64_t);

}  // namespace mrcnn
