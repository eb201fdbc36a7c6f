// Position-sensitive RoIAlign: schema, CPU, host side of CUDA. See host.h and planes.h, which it shares with
// ps_roi_pool.
#include "host.h"

namespace mrcnn {
namespace {

Tensor ps_roi_align_cpu(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t height, int64_t width,
                        int64_t sampling_ratio) {
  return ps_forward<Bins::kSampled, &ps_run_cpu<Bins::kSampled>>(input, rois, spatial_scale, height, width,
                                                                 sampling_ratio);
}

Tensor ps_roi_align_backward_cpu(const Tensor& gradient, const Tensor& rois, double spatial_scale, int64_t images,
                                 int64_t height, int64_t width, int64_t sampling_ratio, bool channels_last) {
  return ps_backward<Bins::kSampled, &ps_run_cpu<Bins::kSampled>>(gradient, rois, spatial_scale, images, height, width,
                                                                  sampling_ratio, channels_last);
}

#ifdef MRCNN_CUDA
Tensor ps_roi_align_cuda(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t height, int64_t width,
                         int64_t sampling_ratio) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  return ps_forward<Bins::kSampled, &ps_run_cuda<Bins::kSampled>>(input, rois, spatial_scale, height, width,
                                                                  sampling_ratio);
}

Tensor ps_roi_align_backward_cuda(const Tensor& gradient, const Tensor& rois, double spatial_scale, int64_t images,
                                  int64_t height, int64_t width, int64_t sampling_ratio, bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device_index());
  return ps_backward<Bins::kSampled, &ps_run_cuda<Bins::kSampled>>(gradient, rois, spatial_scale, images, height, width,
                                                                   sampling_ratio, channels_last);
}

#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "ps_roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio) -> Tensor");
  m.def(
      "ps_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt images, SymInt height, "
      "SymInt width, int sampling_ratio, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("ps_roi_align", TORCH_BOX(&ps_roi_align_cpu));
  m.impl("ps_roi_align_backward", TORCH_BOX(&ps_roi_align_backward_cpu));
}

#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("ps_roi_align", TORCH_BOX(&ps_roi_align_cuda));
  m.impl("ps_roi_align_backward", TORCH_BOX(&ps_roi_align_backward_cuda));
}
#endif

}  // namespace mrcnn
