#pragma once
// Shared by grid_anchors.cpp and grid_anchors_cuda.cu.
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

// The base anchors travel to a CUDA kernel inside its arguments (at most 4 KB), which costs no copy to the device.
constexpr int kMaximumBaseAnchors = 64;

struct AnchorGrid {
  int64_t height, width;      // cells
  double stride_y, stride_x;  // pixels between cells
  double offset;              // of the first centre, in strides
  int count;                  // base anchors per cell
  double corners[kMaximumBaseAnchors][4];
};

// Where a column or row of cells puts its base anchors' origin. Rounded to T before a corner is added, as reference
// implementations do with their tensors.
template <typename T>
HOST_DEVICE T anchor_shift(int64_t cell, double offset, double stride) {
  return static_cast<T>((static_cast<double>(cell) + offset) * stride);
}

// Launches the CUDA kernel; returns nullptr or an error message.
template <typename T>
const char* launch_grid_anchors(const AnchorGrid& grid, T* anchors, void* stream);

}  // namespace mrcnn
