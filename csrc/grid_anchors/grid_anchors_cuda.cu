// Anchors of a whole feature map.
#include "../cuda_launch.h"
#include "grid_anchors.h"

namespace mrcnn {
namespace {

// One thread = one anchor [y, x, a].
template <typename T>
__global__ void place_anchors(const __grid_constant__ AnchorGrid grid, int64_t count, T* __restrict__ anchors) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t cell = index / grid.count;
  const T x = anchor_shift<T>(cell % grid.width, grid.offset, grid.stride_x);
  const T y = anchor_shift<T>(cell / grid.width, grid.offset, grid.stride_y);
  const double* corners = grid.corners[index % grid.count];
  anchors[4 * index] = x + static_cast<T>(corners[0]);
  anchors[4 * index + 1] = y + static_cast<T>(corners[1]);
  anchors[4 * index + 2] = x + static_cast<T>(corners[2]);
  anchors[4 * index + 3] = y + static_cast<T>(corners[3]);
}

}  // namespace

template <typename T>
const char* launch_grid_anchors(const AnchorGrid& grid, T* anchors, void* stream) {
  constexpr int kThreads = 256;
  const int64_t count = grid.height * grid.width * grid.count, blocks = (count + kThreads - 1) / kThreads;
  return launch(&place_anchors<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, grid, count,
                anchors);
}

template const char* launch_grid_anchors(const AnchorGrid&, float*, void*);
template const char* launch_grid_anchors(const AnchorGrid&, double*, void*);

}  // namespace mrcnn
