// Anchors, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/grid_anchors/grid_anchors.h"

extern "C" {

const char* grid_anchors_float(const double* corners, int64_t count, int64_t height, int64_t width, double stride_y,
                               double stride_x, double offset, float* anchors) {
  mrcnn::AnchorGrid grid{height, width, stride_y, stride_x, offset, static_cast<int>(count), {}};
  std::copy(corners, corners + 4 * count, &grid.corners[0][0]);
  return emulated::guarded([&] { return mrcnn::launch_grid_anchors<float>(grid, anchors, nullptr); });
}

}  // extern "C"

namespace {

void run() {
  const double corners[] = {-1, -1, 1, 1, -2, -1, 2, 1};
  for (const int64_t width : {1, 31, 64}) {
    std::vector<float> anchors(3 * width * 2 * 4);
    emulated::expect("grid_anchors", grid_anchors_float(corners, 2, 3, width, 8, 8, 0.5, anchors.data()));
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
