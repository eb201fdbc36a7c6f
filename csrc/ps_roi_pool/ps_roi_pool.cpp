// Position-sensitive RoI pooling: schema, CPU, host side of CUDA. All but what a bin is, it shares with ps_roi_align.
#include "../ps_roi_align/host.h"

namespace mrcnn {
namespace {

Tensor ps_roi_pool_cpu(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t height, int64_t width) {
  return ps_forward<Bins::kWhole, &ps_run_cpu<Bins::kWhole>>(input, rois, spatial_scale, height, width, 0);
}

Tensor ps_roi_pool_backward_cpu(const Tensor& gradient, const Tensor& rois, double spatial_scale, int64_t images,
                                int64_t height, int64_t width, bool channels_last) {
  return ps_backward<Bins::kWhole, &ps_run_cpu<Bins::kWhole>>(gradient, rois, spatial_scale, images, height, width, 0,
                                                              channels_last);
}

#ifdef MRCNN_CUDA
Tensor ps_roi_pool_cuda(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t height, int64_t width) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  return ps_forward<Bins::kWhole, &ps_run_cuda<Bins::kWhole>>(input, rois, spatial_scale, height, width, 0);
}

Tensor ps_roi_pool_backward_cuda(const Tensor& gradient, const Tensor& rois, double spatial_scale, int64_t images,
                                 int64_t height, int64_t width, bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device_index());
  return ps_backward<Bins::kWhole, &ps_run_cuda<Bins::kWhole>>(gradient, rois, spatial_scale, images, height, width, 0,
                                                               channels_last);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) "
      "-> Tensor");
  m.def(
      "ps_roi_pool_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt images, SymInt height, "
      "SymInt width, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("ps_roi_pool", TORCH_BOX(&ps_roi_pool_cpu));
  m.impl("ps_roi_pool_backward", TORCH_BOX(&ps_roi_pool_backward_cpu));
}

#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("ps_roi_pool", TORCH_BOX(&ps_roi_pool_cuda));
  m.impl("ps_roi_pool_backward", TORCH_BOX(&ps_roi_pool_backward_cuda));
}
#endif

}  // namespace mrcnn
