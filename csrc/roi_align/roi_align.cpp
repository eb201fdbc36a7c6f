// RoIAlign over one feature map or a pyramid of them: schema, checks, CPU kernels, host side of CUDA.
//
// Channels-last maps: forward, one piece of work is a few regions; backward, a band of rows of one map. Contiguous
// maps: one piece of work is a few channels, whose planes stay in the cache while all regions read from them or add to
// them. Gradients are never shared between threads, so there are no atomics, and every sum has the same order - the
// same bits - for any number of threads.
#include "roi_align.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "../common.h"
#include "../regions.h"
#include "channels_last.h"
#include "contiguous.h"
#include "plan.h"

namespace mrcnn {
namespace {

// ---- arguments

Pooling checked_pooling(int64_t height, int64_t width, int64_t sampling_ratio, bool aligned, double canonical_size,
                        int64_t canonical_level, const std::vector<double>& scales) {
  check(height > 0 && width > 0 && height < 32768 && width < 32768,
        "roi_align: output_size must be positive and below 32768, got ", height, " x ", width);
  check(sampling_ratio < (1 << 24), "roi_align: sampling_ratio is too large: ", sampling_ratio);
  check(canonical_size > 0, "roi_align: canonical_size must be positive, got ", canonical_size);
  check(!scales.empty() && scales.size() <= kMaximumLevels, "roi_align: between 1 and ", kMaximumLevels,
        " feature maps, got ", scales.size());
  for (const double scale : scales) {
    check(scale > 0 && std::isfinite(scale), "roi_align: spatial_scale must be positive, got ", scale);
  }
  return {static_cast<int>(height),
          static_cast<int>(width),
          static_cast<int>(std::max<int64_t>(sampling_ratio, 0)),
          aligned,
          canonical_size,
          static_cast<int>(canonical_level),
          static_cast<int>(std::lround(-std::log2(scales[0]))),
          static_cast<int>(scales.size())};
}

void check_features(const std::vector<Tensor>& features, const std::vector<double>& scales) {
  check(features.size() == scales.size(), "roi_align: one spatial_scale per feature map, got ", scales.size(), " for ",
        features.size(), " maps");
  for (size_t i = 0; i < features.size(); ++i) {
    const Tensor& map = features[i];
    check(map.dim() == 4, "roi_align: features[", i, "] must be [N, C, H, W], got ", ShapeOf{map});
    check(map.size(0) == features[0].size(0) && map.size(1) == features[0].size(1), "roi_align: features[", i,
          "] must have the images and channels of features[0], ", ShapeOf{features[0]}, ", got ", ShapeOf{map});
    check(map.scalar_type() == features[0].scalar_type(), "roi_align: features[", i, "] must be ",
          features[0].scalar_type(), " as features[0] is, got ", map.scalar_type());
    check(map.is_cuda() == features[0].is_cuda() && map.get_device_index() == features[0].get_device_index(),
          "roi_align: features[", i, "] must be on the device of features[0]");
    check(map.numel() == 0 || (map.size(2) < (1 << 24) && map.size(3) < (1 << 24)), "roi_align: features[", i,
          "] is too large: ", ShapeOf{map});
  }
  check(is_floating(features[0].scalar_type()), "roi_align: features must be floating point, got ",
        features[0].scalar_type());
}

FeatureMaps described(const std::vector<Tensor>& maps, const std::vector<double>& scales) {
  FeatureMaps described{};
  for (size_t i = 0; i < maps.size(); ++i) {
    described.data[i] = const_cast<void*>(maps[i].const_data_ptr());
    described.height[i] = static_cast<int>(maps[i].size(2));
    described.width[i] = static_cast<int>(maps[i].size(3));
    described.scale[i] = scales[i];
  }
  described.images = maps[0].size(0);
  described.channels = maps[0].size(1);
  return described;
}

// Everything a call is about, checked and brought into one memory format.
struct Call {
  Pooling pooling;
  bool channels_last;
  Tensor rois;
  std::vector<Tensor> maps;
  FeatureMaps described;
};

// ---- forward

Call forward_call(const std::vector<Tensor>& features, const Tensor& rois, const std::vector<double>& scales,
                  int64_t height, int64_t width, int64_t sampling_ratio, bool aligned, double canonical_size,
                  int64_t canonical_level, bool channels_last) {
  std::vector<Tensor> maps;
  for (const Tensor& map : features) maps.push_back(in_format(map, channels_last));
  return {checked_pooling(height, width, sampling_ratio, aligned, canonical_size, canonical_level, scales),
          channels_last, comparable_rois(rois, features[0].scalar_type()), maps, described(maps, scales)};
}

Tensor roi_align_cpu(const std::vector<Tensor>& features, const Tensor& rois, const std::vector<double>& scales,
                     int64_t height, int64_t width, int64_t sampling_ratio, bool aligned, double canonical_size,
                     int64_t canonical_level) {
  check_features(features, scales);
  check_rois("roi_align", rois, features[0]);
  const Call call = forward_call(features, rois, scales, height, width, sampling_ratio, aligned, canonical_size,
                                 canonical_level, prefers_channels_last(features[0]));
  Tensor pooled = allocated(features[0], features[0].scalar_type(), rois.size(0), call.described.channels, height,
                            width, call.channels_last);
  THO_DISPATCH_V2(features[0].scalar_type(), "roi_align", AT_WRAP([&] {
                    using A = accumulator_t<scalar_t>;
                    const auto order =
                        ordered(call.rois.const_data_ptr<A>(), rois.size(0), call.described, call.pooling);
                    auto* out = static_cast<scalar_t*>(pooled.mutable_data_ptr());
                    if (call.channels_last) {
                      pool_channels_last<scalar_t>(order, out);
                    } else {
                      pool_contiguous<scalar_t>(order, out);
                    }
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return pooled;
}

// ---- backward

Call backward_call(const Tensor& gradient, const Tensor& rois, int64_t images, const std::vector<int64_t>& heights,
                   const std::vector<int64_t>& widths, const std::vector<double>& scales, int64_t sampling_ratio,
                   bool aligned, double canonical_size, int64_t canonical_level, bool channels_last) {
  check(gradient.dim() == 4 && is_floating(gradient.scalar_type()),
        "roi_align_backward: grad must be [R, C, h, w] and floating point, got ", ShapeOf{gradient});
  check_rois("roi_align", rois, gradient);
  check(rois.size(0) == gradient.size(0), "roi_align_backward: grad must hold ", rois.size(0), " regions, got ",
        ShapeOf{gradient});
  check(heights.size() == scales.size() && widths.size() == scales.size(),
        "roi_align_backward: one height and width per spatial_scale");
  const Pooling pooling = checked_pooling(gradient.size(2), gradient.size(3), sampling_ratio, aligned, canonical_size,
                                          canonical_level, scales);
  std::vector<Tensor> maps;
  for (size_t i = 0; i < scales.size(); ++i) {
    check(images >= 0 && heights[i] >= 0 && widths[i] >= 0, "roi_align_backward: sizes must not be negative, got ",
          images, " images of ", heights[i], " x ", widths[i]);
    maps.push_back(
        allocated(gradient, gradient.scalar_type(), images, gradient.size(1), heights[i], widths[i], channels_last));
  }
  return {pooling, channels_last, comparable_rois(rois, gradient.scalar_type()), maps, described(maps, scales)};
}

std::vector<Tensor> roi_align_backward_cpu(const Tensor& gradient, const Tensor& rois, int64_t images,
                                           const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                                           const std::vector<double>& scales, int64_t sampling_ratio, bool aligned,
                                           double canonical_size, int64_t canonical_level, bool channels_last) {
  const Call call = backward_call(gradient, rois, images, heights, widths, scales, sampling_ratio, aligned,
                                  canonical_size, canonical_level, channels_last);
  const Tensor pooled = in_format(gradient, channels_last);
  THO_DISPATCH_V2(gradient.scalar_type(), "roi_align_backward", AT_WRAP([&] {
                    using A = accumulator_t<scalar_t>;
                    const auto order =
                        ordered(call.rois.const_data_ptr<A>(), rois.size(0), call.described, call.pooling);
                    const auto* bins = static_cast<const scalar_t*>(pooled.const_data_ptr());
                    if (channels_last) {
                      gather_channels_last<scalar_t>(order, bins);
                    } else {
                      scatter_contiguous<scalar_t>(order, bins);
                    }
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return call.maps;
}

// ---- CUDA

#ifdef MRCNN_CUDA
// The type the kernels compute with: half precision moves in packets of eight channels, other numbers of them go
// through float32.
ScalarType kernel_type(ScalarType type, int64_t channels) {
  return channels % packed_channels(element_type(type)) == 0 ? type : ScalarType::Float;
}

Tensor in_type(const Tensor& map, ScalarType type) {
  return map.scalar_type() == type ? map : torch::stable::to(map, type);
}

// Channels last, in the kernels' type, and on a boundary of 16 bytes, which a slice of another tensor may not be.
Tensor for_kernel(const Tensor& map, ScalarType type) {
  const Tensor dense = in_format(in_type(map, type), true);
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : torch::stable::clone(dense);
}

// The CUDA kernels read and write channels last; contiguous maps are converted on the way in and out, which a device
// does at the speed of its memory.
Tensor roi_align_cuda(const std::vector<Tensor>& features, const Tensor& rois, const std::vector<double>& scales,
                      int64_t height, int64_t width, int64_t sampling_ratio, bool aligned, double canonical_size,
                      int64_t canonical_level) {
  check_features(features, scales);
  check_rois("roi_align", rois, features[0]);
  const torch::stable::accelerator::DeviceGuard guard(features[0].get_device_index());
  const ScalarType type = features[0].scalar_type(), computed = kernel_type(type, features[0].size(1));
  std::vector<Tensor> maps;
  for (const Tensor& map : features) maps.push_back(for_kernel(map, computed));
  const Call call =
      forward_call(maps, rois, scales, height, width, sampling_ratio, aligned, canonical_size, canonical_level, true);
  Tensor pooled = allocated(maps[0], computed, rois.size(0), call.described.channels, height, width, true);
  if (pooled.numel() > 0) {
    check_launch("roi_align",
                 launch_roi_align(element_type(computed), call.described, call.pooling, call.rois.const_data_ptr(),
                                  rois.size(0), pooled.mutable_data_ptr(), current_stream(pooled)));
  }
  return in_format(in_type(pooled, type), prefers_channels_last(features[0]));
}

std::vector<Tensor> roi_align_backward_cuda(const Tensor& gradient, const Tensor& rois, int64_t images,
                                            const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                                            const std::vector<double>& scales, int64_t sampling_ratio, bool aligned,
                                            double canonical_size, int64_t canonical_level, bool channels_last) {
  check(gradient.dim() == 4, "roi_align_backward: grad must be [R, C, h, w], got ", ShapeOf{gradient});
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device_index());
  const ScalarType type = gradient.scalar_type(), computed = kernel_type(type, gradient.size(1));
  const Tensor pooled = for_kernel(gradient, computed);
  const Call call = backward_call(pooled, rois, images, heights, widths, scales, sampling_ratio, aligned,
                                  canonical_size, canonical_level, true);
  const int64_t bytes[] = {roi_align_workspace(call.described, call.pooling, rois.size(0))};
  const Tensor workspace = torch::stable::empty({bytes, 1}, ScalarType::Byte, std::nullopt, pooled.device());
  check_launch("roi_align_backward",
               launch_roi_align_backward(element_type(computed), call.described, call.pooling,
                                         call.rois.const_data_ptr(), rois.size(0), pooled.const_data_ptr(),
                                         workspace.mutable_data_ptr(), current_stream(gradient)));
  std::vector<Tensor> maps;
  for (const Tensor& map : call.maps) maps.push_back(in_format(in_type(map, type), channels_last));
  return maps;
}

// The gradient with atomic additions, for benchmarks to compare with. float32, channels last.
std::vector<Tensor> roi_align_backward_atomic(const Tensor& gradient, const Tensor& rois, int64_t images,
                                              const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                                              const std::vector<double>& scales, int64_t sampling_ratio, bool aligned,
                                              double canonical_size, int64_t canonical_level) {
  check(gradient.scalar_type() == ScalarType::Float && is_channels_last(gradient),
        "roi_align_backward_atomic: grad must be float32 and channels last, got ", gradient.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device_index());
  const Tensor pooled = for_kernel(gradient, ScalarType::Float);
  Call call = backward_call(pooled, rois, images, heights, widths, scales, sampling_ratio, aligned, canonical_size,
                            canonical_level, true);
  for (Tensor& map : call.maps) torch::stable::zero_(map);
  check_launch(
      "roi_align_backward_atomic",
      launch_roi_align_backward_atomic(call.described, call.pooling, call.rois.const_data_ptr<float>(), rois.size(0),
                                       pooled.const_data_ptr<float>(), current_stream(gradient)));
  return call.maps;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "roi_align(Tensor[] features, Tensor rois, float[] spatial_scales, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned, float canonical_size, int canonical_level) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, SymInt images, SymInt[] heights, SymInt[] widths, "
      "float[] spatial_scales, int sampling_ratio, bool aligned, float canonical_size, int canonical_level, "
      "bool channels_last) -> Tensor[]");
  m.def(
      "roi_align_backward_atomic(Tensor grad, Tensor rois, SymInt images, SymInt[] heights, SymInt[] widths, "
      "float[] spatial_scales, int sampling_ratio, bool aligned, float canonical_size, int canonical_level) -> "
      "Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward_cpu));
}

#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align_cuda));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward_cuda));
  m.impl("roi_align_backward_atomic", TORCH_BOX(&roi_align_backward_atomic));
}
#endif

}  // namespace mrcnn
