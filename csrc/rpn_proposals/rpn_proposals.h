#pragma once
// Shared by rpn_proposals.cpp and rpn_proposals_cuda.cu: how logits are ordered, and how an anchor and its deltas
// become a box.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../grid_anchors/grid_anchors.h"
#include "../portable.h"

namespace mrcnn {

constexpr int kProposalLevels = 8;
constexpr int kProposalImages = 64;  // of one launch of the decoding kernel, whose arguments hold their sizes

// Whole numbers in the order of the values they stand for, NaN below everything, both zeros equal.
template <typename T>
struct SortKey;
template <>
struct SortKey<float> {
  using type = uint32_t;
};
template <>
struct SortKey<double> {
  using type = uint64_t;
};
template <typename T>
using sort_key_t = typename SortKey<T>::type;

template <typename T>
HOST_DEVICE sort_key_t<T> sort_key(T value) {
  using Key = sort_key_t<T>;
  if (value != value) return 0;
  value += T(0);  // -0 becomes +0
  Key bits;
  memcpy(&bits, &value, sizeof(bits));
  const Key sign = Key{1} << (8 * sizeof(Key) - 1);
  return (bits & sign) != 0 ? ~bits : bits | sign;
}

template <typename T>
HOST_DEVICE T sorted_value(sort_key_t<T> key) {
  using Key = sort_key_t<T>;
  const Key sign = Key{1} << (8 * sizeof(Key) - 1);
  const Key bits = (key & sign) != 0 ? key ^ sign : ~key;
  T value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// A convolution's output of one level. Cells lie in rows without gaps, so the distance of two cells is a multiple of
// cell_stride; the strides are in elements.
struct LevelMap {
  const void* data;
  int64_t image_stride, channel_stride, cell_stride;
};

// What turns deltas into usable boxes: "Rich feature hierarchies" (Girshick et al., 2014), appendix C.
struct Decoding {
  double weights[4];  // that the deltas were multiplied by
  double clamp;       // upper limit of the logarithms of the scales
  double min_size;    // both sides of a usable box are longer than that, in pixels
};

template <typename T>
HOST_DEVICE T log_scale(T delta, double weight, double clamp) {
  const T scale = delta / static_cast<T>(weight), limit = static_cast<T>(clamp);
  return scale > limit ? limit : scale;  // NaN stays NaN
}

template <typename T>
HOST_DEVICE T clipped(T value, T limit) {
  return value < T(0) ? T(0) : value > limit ? limit : value;  // NaN stays NaN
}

// The box that an anchor's deltas make of it, cut to the image; true if it is usable. `anchor` counts in the order y,
// x, base anchor. The order of the operations is that of ops.decode and ops.clip_boxes, step by step, so that the bits
// are theirs.
template <typename T>
HOST_DEVICE bool decoded(const AnchorGrid& grid, uint32_t anchor, T dx, T dy, T scale_x, T scale_y,
                         const Decoding& decoding, int64_t image_height, int64_t image_width, T* box) {
  const auto count = static_cast<uint32_t>(grid.count), columns = static_cast<uint32_t>(grid.width);
  const uint32_t cell = anchor / count, row = cell / columns;
  const double* corners = grid.corners[anchor - cell * count];
  const T x = anchor_shift<T>(cell - row * columns, grid.offset, grid.stride_x);
  const T y = anchor_shift<T>(row, grid.offset, grid.stride_y);
  const T x1 = x + static_cast<T>(corners[0]), y1 = y + static_cast<T>(corners[1]);
  const T width = x + static_cast<T>(corners[2]) - x1, height = y + static_cast<T>(corners[3]) - y1;
  const T half_width = T(0.5) * width * scale_x, half_height = T(0.5) * height * scale_y;
  const T center_x = x1 + T(0.5) * width + dx / static_cast<T>(decoding.weights[0]) * width;
  const T center_y = y1 + T(0.5) * height + dy / static_cast<T>(decoding.weights[1]) * height;
  const T right = static_cast<T>(image_width), bottom = static_cast<T>(image_height);
  box[0] = clipped(center_x - half_width, right);
  box[1] = clipped(center_y - half_height, bottom);
  box[2] = clipped(center_x + half_width, right);
  box[3] = clipped(center_y + half_height, bottom);
  const T shortest = static_cast<T>(decoding.min_size);
  return box[2] - box[0] > shortest && box[3] - box[1] > shortest;  // false for NaN
}

template <typename T>
HOST_DEVICE bool is_finite(T value) {
  return value - value == T(0);
}

// ---- CUDA

enum class MapType { kFloat, kDouble, kHalf, kBFloat16 };

// The best `chosen[l]` of `count[l]` anchors of each level, of each image.
struct Selection {
  LevelMap logits[kProposalLevels];
  int64_t count[kProposalLevels], chosen[kProposalLevels],
      first[kProposalLevels];    // first: of a level among all chosen
  int anchors[kProposalLevels];  // per cell
  int levels;
  int64_t images, total;  // total: chosen of all levels
};

struct ImageSizes {
  int32_t height[kProposalImages], width[kProposalImages];
};

// Scratch of the selection. Numbers of 32 bits, zeroed for the histograms.
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
constexpr int64_t kAnchorsPerBlock = 4096;
inline int64_t digit_passes(MapType type) {
  return type == MapType::kDouble ? 6 : 3;
}
inline int64_t selection_blocks(const Selection& selection) {
  int64_t most = 1;
  for (int l = 0; l < selection.levels; ++l) {
    const int64_t blocks = (selection.count[l] + kAnchorsPerBlock - 1) / kAnchorsPerBlock;
    if (blocks > most) most = blocks;
  }
  return most;
}
struct SelectionScratch {
  uint32_t* histograms;  // [digit_passes, images, levels, kBins], zero
  uint32_t* block_sums;  // [images, levels, selection_blocks, 2]
  void* thresholds;      // [images, levels] of key and number still to be found, 16 bytes each
  uint32_t* anchors;     // [images, total]
  void* keys;            // [images, total] of sort_key_t
};

// Launch the CUDA kernels; return nullptr or an error message. `boxes` and `logits` are float, or double for double
// maps.
const char* launch_rpn_select(MapType type, const Selection& selection, const SelectionScratch& scratch, void* stream);
const char* launch_rpn_decode(MapType type, const Selection& selection, int level, const LevelMap& deltas,
                              const AnchorGrid& grid, const Decoding& decoding, const ImageSizes& sizes,
                              int64_t first_image, int64_t images, const SelectionScratch& scratch, void* boxes,
                              void* logits, int64_t* groups, void* stream);
template <typename T>
const char* launch_rpn_best(const T* boxes, const T* logits, const bool* keep, int64_t images, int64_t total,
                            int64_t count, T* best_boxes, T* best_logits, void* stream);

}  // namespace mrcnn
