#pragma once
// What ps_roi_align and ps_roi_pool do on the host: checks, CPU calls, CUDA calls.
#include "../common.h"
#include "../regions.h"
#include "planes.h"
#include "position_sensitive.h"

namespace mrcnn {

template <Bins kBins>
constexpr const char* ps_name(bool backward) {
  if (kBins == Bins::kSampled) return backward ? "ps_roi_align_backward" : "ps_roi_align";
  return backward ? "ps_roi_pool_backward" : "ps_roi_pool";
}

// Both tensors in one memory format; one of them may have been allocated for the call.
inline PositionSensitiveCall ps_call(const Tensor& map, const Tensor& pooled, double spatial_scale,
                                     int64_t sampling_ratio, bool channels_last) {
  const int64_t channels = map.size(1), height = map.size(2), width = map.size(3);
  const int64_t out = pooled.size(1), bins = pooled.size(2) * pooled.size(3);
  return {map.size(0),
          out,
          pooled.size(0),
          static_cast<int>(height),
          static_cast<int>(width),
          static_cast<int>(pooled.size(2)),
          static_cast<int>(pooled.size(3)),
          spatial_scale,
          static_cast<int>(std::max<int64_t>(sampling_ratio, 0)),
          channels * height * width,
          channels_last ? 1 : height * width,
          channels_last ? channels : 1,
          out * bins,
          channels_last ? 1 : bins,
          channels_last ? out : 1};
}

template <Bins kBins>
Tensor ps_pooled(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t height, int64_t width,
                 int64_t sampling_ratio) {
  const char* op = ps_name<kBins>(false);
  check_map(op, input);
  check_pooling(op, height, width, spatial_scale);
  check(sampling_ratio < (1 << 24), op, ": sampling_ratio is too large: ", sampling_ratio);
  check_rois(op, rois, input);
  check(input.size(1) % (height * width) == 0, op, ": input must have a multiple of ", height, " x ", width,
        " channels, one for each bin, got ", ShapeOf{input});
  return allocated(input, input.scalar_type(), rois.size(0), input.size(1) / (height * width), height, width,
                   prefers_channels_last(input));
}

template <Bins kBins>
Tensor ps_map(const Tensor& gradient, const Tensor& rois, int64_t images, int64_t height, int64_t width,
              bool channels_last) {
  const char* op = ps_name<kBins>(true);
  check(gradient.dim() == 4 && is_floating(gradient.scalar_type()), op,
        ": grad must be [R, C, h, w] and floating point, got ", ShapeOf{gradient});
  check_rois(op, rois, gradient);
  check(rois.size(0) == gradient.size(0), op, ": grad must hold ", rois.size(0), " regions, got ", ShapeOf{gradient});
  return allocated(gradient, gradient.scalar_type(), images, gradient.size(1) * gradient.size(2) * gradient.size(3),
                   height, width, channels_last);
}

template <Bins kBins>
struct PsRun {
  template <typename T>
  static void on(const PositionSensitiveCall& call, const Tensor& rois, bool backward, const void* from, void* to) {
    using A = accumulator_t<T>;
    PsPlan<A> plan;
    plan.template fill<kBins>(ps_name<kBins>(backward), rois.const_data_ptr<A>(), call);
    if (backward) {
      spread_position_sensitive(call, plan, static_cast<const T*>(from), static_cast<T*>(to));
    } else {
      pool_position_sensitive(call, plan, static_cast<const T*>(from), static_cast<T*>(to));
    }
  }
};

template <Bins kBins>
void ps_run_cpu(const PositionSensitiveCall& call, const Tensor& rois, bool backward, const Tensor& from, Tensor& to) {
  const Tensor boxes = comparable_rois(rois, to.scalar_type());
  const void* source = from.const_data_ptr();
  void* target = to.mutable_data_ptr();
  THO_DISPATCH_V2(to.scalar_type(), ps_name<kBins>(false),
                  AT_WRAP([&] { PsRun<kBins>::template on<scalar_t>(call, boxes, backward, source, target); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
}

#ifdef MRCNN_CUDA
template <Bins kBins>
void ps_run_cuda(const PositionSensitiveCall& call, const Tensor& rois, bool backward, const Tensor& from, Tensor& to) {
  if (to.numel() == 0) return;
  const Tensor boxes = comparable_rois(rois, to.scalar_type());
  const auto launcher = backward ? &launch_position_sensitive_backward<kBins> : &launch_position_sensitive<kBins>;
  check_launch(ps_name<kBins>(backward), launcher(element_type(to.scalar_type()), call, from.const_data_ptr(),
                                                  boxes.const_data_ptr(), to.mutable_data_ptr(), current_stream(to)));
}
#endif

using PsRunner = void (*)(const PositionSensitiveCall&, const Tensor&, bool, const Tensor&, Tensor&);

template <Bins kBins, PsRunner kRun>
Tensor ps_forward(const Tensor& input, const Tensor& rois, double spatial_scale, int64_t height, int64_t width,
                  int64_t sampling_ratio) {
  Tensor pooled = ps_pooled<kBins>(input, rois, spatial_scale, height, width, sampling_ratio);
  const bool channels_last = prefers_channels_last(input);
  const Tensor map = in_format(input, channels_last);
  kRun(ps_call(map, pooled, spatial_scale, sampling_ratio, channels_last), rois, false, map, pooled);
  return pooled;
}

template <Bins kBins, PsRunner kRun>
Tensor ps_backward(const Tensor& gradient, const Tensor& rois, double spatial_scale, int64_t images, int64_t height,
                   int64_t width, int64_t sampling_ratio, bool channels_last) {
  Tensor map = ps_map<kBins>(gradient, rois, images, height, width, channels_last);
  const Tensor given = in_format(gradient, channels_last);
  kRun(ps_call(map, given, spatial_scale, sampling_ratio, channels_last), rois, true, given, map);
  return map;
}

}  // namespace mrcnn
