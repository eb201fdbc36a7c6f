// Proposals on the device, without a word to the host: a histogram of the logits' keys, digit by digit, finds each
// level's threshold; what passes it is compacted in order; counting the better ones gives each its place. Additions of
// whole numbers are the only atomics, so every run has the same bits.
#include "../cuda_launch.h"
#include "rpn_proposals.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// What is known of the k-th best key: the digits found so far, and how many of those that share them are wanted.
template <typename Key>
struct alignas(16) Threshold {
  Key key;
  uint32_t missing;
};

// The key of an anchor, counted in the order y, x, base anchor.
template <typename T, typename E>
__device__ __forceinline__ sort_key_t<T> key_of(const LevelMap& map, int anchors, int64_t image, uint32_t anchor) {
  const uint32_t cell = anchor / anchors, channel = anchor - cell * anchors;
  const auto* values = static_cast<const E*>(map.data) + image * map.image_stride;
  return sort_key(static_cast<T>(widened(values[channel * map.channel_stride + cell * map.cell_stride])));
}

// Where blockIdx.z, image and level, has its numbers in the tables of [images, levels].
struct Piece {
  int level;
  int64_t image, count, chosen, slot;  // slot: of its first candidate among those of all images and levels
};

__device__ __forceinline__ Piece piece_at(const Selection& selection, int64_t index) {
  const int level = static_cast<int>(index % selection.levels);
  const int64_t image = index / selection.levels;
  return {level, image, selection.count[level], selection.chosen[level],
          image * selection.total + selection.first[level]};
}

// One block = a stretch of one level of one image, one thread = every 256th anchor of it. Counts one digit of the keys
// whose higher digits are those of the threshold; in shared memory first, as most keys fall into few bins.
template <typename T, typename E>
__global__ void count_digits(const __grid_constant__ Selection selection,
                             const Threshold<sort_key_t<T>>* __restrict__ thresholds, int above, int shift,
                             uint32_t* __restrict__ histograms) {
  using Key = sort_key_t<T>;
  __shared__ uint32_t bins[kBins];
  const Piece piece = piece_at(selection, blockIdx.y);
  const int64_t first = int64_t{blockIdx.x} * kAnchorsPerBlock;
  if (first >= piece.count || piece.chosen == 0) return;
  const int64_t last = first + kAnchorsPerBlock < piece.count ? first + kAnchorsPerBlock : piece.count;
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) bins[i] = 0;
  __syncthreads();
  const bool first_digit = above == 8 * static_cast<int>(sizeof(Key));
  const Key known = first_digit ? 0 : thresholds[blockIdx.y].key, mask = (Key{1} << (above - shift)) - 1;
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    const Key key = key_of<T, E>(selection.logits[piece.level], selection.anchors[piece.level], piece.image,
                                 static_cast<uint32_t>(i));
    if (first_digit || (key ^ known) >> above == 0) atomicAdd(&bins[key >> shift & mask], 1u);
  }
  __syncthreads();
  uint32_t* histogram = histograms + int64_t{blockIdx.y} * kBins;
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) {
    if (bins[i] != 0) atomicAdd(&histogram[i], bins[i]);
  }
}

// One block = one level of one image, one thread = eight bins of its histogram, thread 0 the highest. Finds the bin
// that holds the k-th best and makes it the threshold's next digit.
template <typename Key>
__global__ void narrow(const __grid_constant__ Selection selection, const uint32_t* __restrict__ histograms, bool first,
                       int shift, Threshold<Key>* __restrict__ thresholds) {
  constexpr int kOwn = kBins / kThreads;
  __shared__ uint32_t sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x), highest = kBins - 1 - thread * kOwn;
  const uint32_t* histogram = histograms + int64_t{blockIdx.x} * kBins;
  uint32_t sum = 0;
  for (int i = 0; i < kOwn; ++i) sum += histogram[highest - i];
  sums[thread] = sum;
  __syncthreads();
  uint32_t better = 0;
  for (int i = 0; i < thread; ++i) better += sums[i];
  const Threshold<Key> known =
      first ? Threshold<Key>{0, static_cast<uint32_t>(piece_at(selection, blockIdx.x).chosen)} : thresholds[blockIdx.x];
  __syncthreads();  // all have read the threshold
  if (better >= known.missing || better + sum < known.missing) return;
  for (int i = 0; i < kOwn; ++i) {
    const uint32_t in_bin = histogram[highest - i];
    if (better + in_bin >= known.missing) {
      thresholds[blockIdx.x] = {known.key | static_cast<Key>(highest - i) << shift, known.missing - better};
      return;
    }
    better += in_bin;
  }
}

// Sum of a number over the threads of a block before this one, and of all.
struct Scan {
  uint32_t before, all;
};

// Of one bit per thread; `counts` is shared memory of a number per warp.
__device__ __forceinline__ Scan scanned(bool bit, uint32_t* counts) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t votes = __ballot_sync(0xffffffffu, bit);
  if (lane == 0) counts[warp] = static_cast<uint32_t>(__popc(votes));
  __syncthreads();
  Scan scan{static_cast<uint32_t>(__popc(votes & ((1u << lane) - 1))), 0};
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) scan.before += counts[i];
    scan.all += counts[i];
  }
  __syncthreads();
  return scan;
}

// One block = the stretch of `count_digits`. How many keys of it are above the threshold, and how many equal it.
template <typename T, typename E>
__global__ void count_passing(const __grid_constant__ Selection selection,
                              const Threshold<sort_key_t<T>>* __restrict__ thresholds, uint32_t* __restrict__ sums) {
  const Piece piece = piece_at(selection, blockIdx.y);
  const int64_t first = int64_t{blockIdx.x} * kAnchorsPerBlock;
  if (first >= piece.count || piece.chosen == 0) return;
  const int64_t last = first + kAnchorsPerBlock < piece.count ? first + kAnchorsPerBlock : piece.count;
  const auto threshold = thresholds[blockIdx.y].key;
  uint32_t above = 0, equal = 0;
  for (int64_t begin = first; begin < last; begin += kThreads) {
    const int64_t i = begin + threadIdx.x;
    const auto key = i < last ? key_of<T, E>(selection.logits[piece.level], selection.anchors[piece.level], piece.image,
                                             static_cast<uint32_t>(i))
                              : 0;
    above += __syncthreads_count(i < last && key > threshold);
    equal += __syncthreads_count(i < last && key == threshold);
  }
  if (threadIdx.x == 0) {
    uint32_t* sum = sums + 2 * (int64_t{blockIdx.y} * gridDim.x + blockIdx.x);
    sum[0] = above;
    sum[1] = equal;
  }
}

// The same stretches. Writes the anchors above the threshold, in order, and behind them the first ones that equal it.
template <typename T, typename E>
__global__ void compact(const __grid_constant__ Selection selection,
                        const Threshold<sort_key_t<T>>* __restrict__ thresholds, const uint32_t* __restrict__ sums,
                        uint32_t* __restrict__ anchors, sort_key_t<T>* __restrict__ keys) {
  __shared__ uint32_t counts[kWarps], before[2];
  const Piece piece = piece_at(selection, blockIdx.y);
  const int64_t first = int64_t{blockIdx.x} * kAnchorsPerBlock;
  if (first >= piece.count || piece.chosen == 0) return;
  const int64_t last = first + kAnchorsPerBlock < piece.count ? first + kAnchorsPerBlock : piece.count;
  const auto threshold = thresholds[blockIdx.y];
  if (threadIdx.x < 2) before[threadIdx.x] = 0;
  __syncthreads();
  uint32_t own[2] = {0, 0};
  for (int64_t block = threadIdx.x; block < blockIdx.x; block += kThreads) {
    const uint32_t* sum = sums + 2 * (int64_t{blockIdx.y} * gridDim.x + block);
    own[0] += sum[0];
    own[1] += sum[1];
  }
  atomicAdd(&before[0], own[0]);
  atomicAdd(&before[1], own[1]);
  __syncthreads();
  uint32_t above = before[0], equal = before[1];
  const auto all_above = static_cast<uint32_t>(piece.chosen) - threshold.missing;
  for (int64_t begin = first; begin < last; begin += kThreads) {
    const int64_t i = begin + threadIdx.x;
    const auto key = i < last ? key_of<T, E>(selection.logits[piece.level], selection.anchors[piece.level], piece.image,
                                             static_cast<uint32_t>(i))
                              : 0;
    const bool is_above = i < last && key > threshold.key, is_equal = i < last && key == threshold.key;
    const Scan of_above = scanned(is_above, counts), of_equal = scanned(is_equal, counts);
    const uint32_t rank = equal + of_equal.before;
    if (is_above || (is_equal && rank < threshold.missing)) {
      const int64_t slot = piece.slot + (is_above ? above + of_above.before : all_above + rank);
      anchors[slot] = static_cast<uint32_t>(i);
      keys[slot] = key;
    }
    above += of_above.all;
    equal += of_equal.all;
  }
}

// How many of `count` keys come before number `own`, whose key is `key`: the larger ones, and of equal ones the
// earlier. All threads of the block take part; `key_at(i)` gives key number i.
template <typename Key, typename KeyAt>
__device__ __forceinline__ int64_t rank_of(Key key, int64_t own, int64_t count, const KeyAt& key_at) {
  __shared__ Key tile[kThreads];
  int64_t rank = 0;
  for (int64_t begin = 0; begin < count; begin += kThreads) {
    const int64_t i = begin + threadIdx.x;
    if (i < count) tile[threadIdx.x] = key_at(i);
    __syncthreads();
    const int size = static_cast<int>(count - begin < kThreads ? count - begin : kThreads);
    const int64_t earlier = own - begin;  // that many of the tile come before `own`
    for (int j = 0; j < size; ++j) rank += tile[j] > key || (tile[j] == key && j < earlier);
    __syncthreads();
  }
  return rank;
}

// One thread = one chosen anchor of a level of image blockIdx.y: finds its place among the others and writes its box.
template <typename T, typename E>
__global__ void decode_chosen(const __grid_constant__ Selection selection, int level,
                              const __grid_constant__ LevelMap deltas, const __grid_constant__ AnchorGrid grid,
                              const __grid_constant__ Decoding decoding, const __grid_constant__ ImageSizes sizes,
                              int64_t first_image, const uint32_t* __restrict__ anchors,
                              const sort_key_t<T>* __restrict__ keys, T* __restrict__ boxes, T* __restrict__ logits,
                              int64_t* __restrict__ groups) {
  const int64_t image = first_image + blockIdx.y, chosen = selection.chosen[level];
  const int64_t first = image * selection.total + selection.first[level];
  const int64_t own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const sort_key_t<T> key = own < chosen ? keys[first + own] : 0;
  const int64_t slot = first + rank_of(key, own, chosen, [=](int64_t i) { return keys[first + i]; });
  if (own >= chosen) return;
  const uint32_t anchor = anchors[first + own], cell = anchor / grid.count;
  const auto* values = static_cast<const E*>(deltas.data) + image * deltas.image_stride + cell * deltas.cell_stride +
                       4 * (anchor - cell * grid.count) * deltas.channel_stride;
  T delta[4], box[4];
  for (int k = 0; k < 4; ++k) delta[k] = static_cast<T>(widened(values[k * deltas.channel_stride]));
  const T scale_x = exp(log_scale(delta[2], decoding.weights[2], decoding.clamp));
  const T scale_y = exp(log_scale(delta[3], decoding.weights[3], decoding.clamp));
  const T logit = sorted_value<T>(key);
  const bool usable = decoded(grid, anchor, delta[0], delta[1], scale_x, scale_y, decoding, sizes.height[blockIdx.y],
                              sizes.width[blockIdx.y], box) &&
                      key != 0 && is_finite(logit);
  for (int k = 0; k < 4; ++k) boxes[4 * slot + k] = usable ? box[k] : T(0);
  logits[slot] = usable ? logit : -static_cast<T>(INFINITY);
  groups[slot] = image * selection.levels + level;
}

// One thread = one candidate of image blockIdx.y: finds its place among those that were kept and writes it there.
template <typename T>
__global__ void place_kept(const T* __restrict__ boxes, const T* __restrict__ logits, const bool* __restrict__ keep,
                           int64_t total, int64_t count, T* __restrict__ best_boxes, T* __restrict__ best_logits) {
  const int64_t first = int64_t{blockIdx.y} * total, own = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const sort_key_t<T> nothing = sort_key(-static_cast<T>(INFINITY));
  const auto key_at = [=](int64_t i) {
    const sort_key_t<T> key = sort_key(logits[first + i]);
    return keep[first + i] && key > nothing ? key : 0;
  };
  const sort_key_t<T> key = own < total ? key_at(own) : 0;
  const int64_t rank = rank_of(key, own, total, key_at);
  if (own >= total || rank >= count) return;
  const int64_t to = int64_t{blockIdx.y} * count + rank;
  for (int k = 0; k < 4; ++k) best_boxes[4 * to + k] = key != 0 ? boxes[4 * (first + own) + k] : T(0);
  best_logits[to] = key != 0 ? logits[first + own] : -static_cast<T>(INFINITY);
}

// ---- launchers

inline unsigned blocks_of(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

template <typename T, typename E>
const char* select(const Selection& selection, const SelectionScratch& scratch, void* stream) {
  using Key = sort_key_t<T>;
  const auto pieces = static_cast<unsigned>(selection.images * selection.levels);
  const dim3 stretches(static_cast<unsigned>(selection_blocks(selection)), pieces), threads(kThreads);
  auto* thresholds = static_cast<Threshold<Key>*>(scratch.thresholds);
  uint32_t* histograms = scratch.histograms;
  constexpr int kBits = 8 * sizeof(Key);
  for (int above = kBits; above > 0; histograms += int64_t{pieces} * kBins) {
    const int shift = above > kDigitBits ? above - kDigitBits : 0;
    const char* failure = launch(&count_digits<T, E>, stretches, threads, 0, stream, selection,
                                 static_cast<const Threshold<Key>*>(thresholds), above, shift, histograms);
    if (failure != nullptr) return failure;
    failure = launch(&narrow<Key>, dim3(pieces), threads, 0, stream, selection,
                     static_cast<const uint32_t*>(histograms), above == kBits, shift, thresholds);
    if (failure != nullptr) return failure;
    above = shift;
  }
  const char* failure = launch(&count_passing<T, E>, stretches, threads, 0, stream, selection,
                               static_cast<const Threshold<Key>*>(thresholds), scratch.block_sums);
  if (failure != nullptr) return failure;
  return launch(&compact<T, E>, stretches, threads, 0, stream, selection,
                static_cast<const Threshold<Key>*>(thresholds), static_cast<const uint32_t*>(scratch.block_sums),
                scratch.anchors, static_cast<Key*>(scratch.keys));
}

template <typename T, typename E>
const char* decode(const Selection& selection, int level, const LevelMap& deltas, const AnchorGrid& grid,
                   const Decoding& decoding, const ImageSizes& sizes, int64_t first_image, int64_t images,
                   const SelectionScratch& scratch, void* boxes, void* logits, int64_t* groups, void* stream) {
  return launch(&decode_chosen<T, E>, dim3(blocks_of(selection.chosen[level]), static_cast<unsigned>(images)),
                dim3(kThreads), 0, stream, selection, level, deltas, grid, decoding, sizes, first_image,
                static_cast<const uint32_t*>(scratch.anchors), static_cast<const sort_key_t<T>*>(scratch.keys),
                static_cast<T*>(boxes), static_cast<T*>(logits), groups);
}

}  // namespace

const char* launch_rpn_select(MapType type, const Selection& selection, const SelectionScratch& scratch, void* stream) {
  switch (type) {
    case MapType::kFloat:
      return select<float, float>(selection, scratch, stream);
    case MapType::kDouble:
      return select<double, double>(selection, scratch, stream);
    case MapType::kHalf:
      return select<float, __half>(selection, scratch, stream);
    case MapType::kBFloat16:
      return select<float, __nv_bfloat16>(selection, scratch, stream);
  }
  return "unknown type";
}

const char* launch_rpn_decode(MapType type, const Selection& selection, int level, const LevelMap& deltas,
                              const AnchorGrid& grid, const Decoding& decoding, const ImageSizes& sizes,
                              int64_t first_image, int64_t images, const SelectionScratch& scratch, void* boxes,
                              void* logits, int64_t* groups, void* stream) {
  const auto launched = [&](auto function) {
    return function(selection, level, deltas, grid, decoding, sizes, first_image, images, scratch, boxes, logits,
                    groups, stream);
  };
  switch (type) {
    case MapType::kFloat:
      return launched(&decode<float, float>);
    case MapType::kDouble:
      return launched(&decode<double, double>);
    case MapType::kHalf:
      return launched(&decode<float, __half>);
    case MapType::kBFloat16:
      return launched(&decode<float, __nv_bfloat16>);
  }
  return "unknown type";
}

template <typename T>
const char* launch_rpn_best(const T* boxes, const T* logits, const bool* keep, int64_t images, int64_t total,
                            int64_t count, T* best_boxes, T* best_logits, void* stream) {
  return launch(&place_kept<T>, dim3(blocks_of(total), static_cast<unsigned>(images)), dim3(kThreads), 0, stream, boxes,
                logits, keep, total, count, best_boxes, best_logits);
}

template const char* launch_rpn_best(const float*, const float*, const bool*, int64_t, int64_t, int64_t, float*, float*,
                                     void*);
template const char* launch_rpn_best(const double*, const double*, const bool*, int64_t, int64_t, int64_t, double*,
                                     double*, void*);

}  // namespace mrcnn
