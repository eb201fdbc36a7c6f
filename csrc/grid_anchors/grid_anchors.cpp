// Anchors of a whole feature map: each base anchor moved to each cell.
#include "grid_anchors.h"

#include <algorithm>

#include "../common.h"

namespace mrcnn {
namespace {

AnchorGrid described(const std::vector<double>& base_anchors, int64_t height, int64_t width, double stride_y,
                     double stride_x, double offset) {
  check(base_anchors.size() % 4 == 0, "grid_anchors: base_anchors must hold 4 numbers each, got ", base_anchors.size());
  check(base_anchors.size() <= 4 * kMaximumBaseAnchors, "grid_anchors: at most ", kMaximumBaseAnchors,
        " base anchors, got ", base_anchors.size() / 4);
  check(height >= 0 && width >= 0, "grid_anchors: grid must not be negative, got ", height, " x ", width);
  AnchorGrid grid{height, width, stride_y, stride_x, offset, static_cast<int>(base_anchors.size() / 4), {}};
  std::copy(base_anchors.begin(), base_anchors.end(), &grid.corners[0][0]);
  return grid;
}

// `like` gives the result its device and type; it holds nothing.
Tensor allocated(const Tensor& like, const AnchorGrid& grid) {
  const ScalarType type = like.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, "grid_anchors: dtype must be float32 or float64, got ",
        type);
  return torch::stable::new_empty(like, {grid.height * grid.width * grid.count, 4});
}

Tensor grid_anchors_cpu(const Tensor& like, const std::vector<double>& base_anchors, int64_t height, int64_t width,
                        double stride_y, double stride_x, double offset) {
  const AnchorGrid grid = described(base_anchors, height, width, stride_y, stride_x, offset);
  Tensor anchors = allocated(like, grid);
  THO_DISPATCH_V2(like.scalar_type(), "grid_anchors", AT_WRAP([&] {
                    scalar_t* out = anchors.mutable_data_ptr<scalar_t>();
                    const int64_t row = width * grid.count * 4;
                    std::vector<scalar_t> base(&grid.corners[0][0], &grid.corners[0][0] + 4 * grid.count);
                    parallel_for(0, row > 0 ? height : 0, std::max<int64_t>(1, 262144 / std::max<int64_t>(row, 1)),
                                 [&](int64_t begin, int64_t end) {
                                   for (int64_t y = begin; y < end; ++y) {
                                     scalar_t* to = out + y * row;
                                     const auto shift_y = anchor_shift<scalar_t>(y, offset, stride_y);
                                     for (int64_t x = 0; x < width; ++x) {
                                       const auto shift_x = anchor_shift<scalar_t>(x, offset, stride_x);
                                       for (int a = 0; a < 4 * grid.count; a += 4, to += 4) {
                                         to[0] = shift_x + base[a];
                                         to[1] = shift_y + base[a + 1];
                                         to[2] = shift_x + base[a + 2];
                                         to[3] = shift_y + base[a + 3];
                                       }
                                     }
                                   }
                                 });
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return anchors;
}

#ifdef MRCNN_CUDA
Tensor grid_anchors_cuda(const Tensor& like, const std::vector<double>& base_anchors, int64_t height, int64_t width,
                         double stride_y, double stride_x, double offset) {
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  const AnchorGrid grid = described(base_anchors, height, width, stride_y, stride_x, offset);
  Tensor anchors = allocated(like, grid);
  if (anchors.numel() == 0) return anchors;
  THO_DISPATCH_V2(like.scalar_type(), "grid_anchors", AT_WRAP([&] {
                    check_launch("grid_anchors", launch_grid_anchors<scalar_t>(
                                                     grid, anchors.mutable_data_ptr<scalar_t>(), current_stream(like)));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return anchors;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "grid_anchors(Tensor like, float[] base_anchors, SymInt height, SymInt width, float stride_y, float stride_x, "
      "float offset) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("grid_anchors", TORCH_BOX(&grid_anchors_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("grid_anchors", TORCH_BOX(&grid_anchors_cuda));
}
#endif

}  // namespace mrcnn
