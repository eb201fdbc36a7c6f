// Deformable convolution: schema, checks, host side of the CPU kernels and of CUDA.
#include "deform_conv2d.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "../common.h"
#include "tiles.h"

namespace mrcnn {
namespace {

// ---- arguments

struct Geometry {
  const std::vector<int64_t>&stride, &padding, &dilation;
};

int checked_pair(const char* name, const std::vector<int64_t>& pair, int axis, int64_t least) {
  constexpr int64_t kLargest = 1 << 24;  // what float32 counts to
  check(pair.size() == 2, "deform_conv2d: ", name, " must be (height, width), got ", pair.size(), " numbers");
  check(pair[axis] >= least && pair[axis] < kLargest, "deform_conv2d: ", name, " must be at least ", least, ", got ",
        pair[0], ", ", pair[1]);
  return static_cast<int>(pair[axis]);
}

int output_size(const char* axis, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t window = dilation * (kernel - 1) + 1;
  check(size + 2 * padding >= window, "deform_conv2d: input must be as large as the window, with its padding; its ",
        axis, " is ", size + 2 * padding, " but the window's ", window);
  return static_cast<int>((size + 2 * padding - window) / stride + 1);
}

void check_beside(const char* name, const Tensor& tensor, const Tensor& input) {
  check(tensor.is_cuda() == input.is_cuda() && tensor.get_device_index() == input.get_device_index(),
        "deform_conv2d: ", name, " must be on the device of input");
  check(is_floating(tensor.scalar_type()), "deform_conv2d: ", name, " must be floating point, got ",
        tensor.scalar_type());
}

DeformConv checked_shape(const Tensor& input, const Tensor& offset, const Tensor& weight,
                         const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                         const Geometry& geometry) {
  check(input.dim() == 4, "deform_conv2d: input must be [N, C, H, W], got ", ShapeOf{input});
  check_beside("input", input, input);
  check(weight.dim() == 4 && weight.numel() > 0,
        "deform_conv2d: weight must be [out_channels, C / groups, height, width], got ", ShapeOf{weight});
  check_beside("weight", weight, input);
  check(weight.scalar_type() == input.scalar_type(), "deform_conv2d: weight must be ", input.scalar_type(),
        " as input is, got ", weight.scalar_type());
  const int64_t channels = input.size(1), out_channels = weight.size(0);
  check(channels > 0 && channels % weight.size(1) == 0, "deform_conv2d: weight must be for a divisor of the ", channels,
        " channels of input, got ", ShapeOf{weight});
  const int64_t groups = channels / weight.size(1);
  check(out_channels % groups == 0, "deform_conv2d: weight must hold a multiple of its ", groups, " groups, got ",
        ShapeOf{weight});
  if (bias) {
    check(bias->dim() == 1 && bias->size(0) == out_channels, "deform_conv2d: bias must be [", out_channels, "], got ",
          ShapeOf{*bias});
    check_beside("bias", *bias, input);
    check(bias->scalar_type() == input.scalar_type(), "deform_conv2d: bias must be ", input.scalar_type(),
          " as input is, got ", bias->scalar_type());
  }
  DeformConv shape{};
  shape.images = input.size(0);
  shape.channels = channels;
  shape.out_channels = out_channels;
  shape.groups = groups;
  for (const int64_t size : {input.size(2), input.size(3), weight.size(2), weight.size(3)}) {
    check(size < (1 << 24), "deform_conv2d: input ", ShapeOf{input}, " or weight ", ShapeOf{weight}, " is too large");
  }
  shape.height = static_cast<int>(input.size(2));
  shape.width = static_cast<int>(input.size(3));
  shape.kernel_height = static_cast<int>(weight.size(2));
  shape.kernel_width = static_cast<int>(weight.size(3));
  shape.stride_y = checked_pair("stride", geometry.stride, 0, 1);
  shape.stride_x = checked_pair("stride", geometry.stride, 1, 1);
  shape.padding_y = checked_pair("padding", geometry.padding, 0, 0);
  shape.padding_x = checked_pair("padding", geometry.padding, 1, 0);
  shape.dilation_y = checked_pair("dilation", geometry.dilation, 0, 1);
  shape.dilation_x = checked_pair("dilation", geometry.dilation, 1, 1);
  shape.out_height =
      output_size("height", shape.height, shape.kernel_height, shape.stride_y, shape.padding_y, shape.dilation_y);
  shape.out_width =
      output_size("width", shape.width, shape.kernel_width, shape.stride_x, shape.padding_x, shape.dilation_x);

  const int64_t taps = shape.taps();
  check(taps < (1 << 24), "deform_conv2d: weight is too large: ", ShapeOf{weight});
  check(offset.dim() == 4 && offset.size(0) == shape.images && offset.size(2) == shape.out_height &&
            offset.size(3) == shape.out_width && offset.size(1) > 0 && offset.size(1) % (2 * taps) == 0,
        "deform_conv2d: offset must be [", shape.images, ", offset_groups * ", 2 * taps, ", ", shape.out_height, ", ",
        shape.out_width, "], got ", ShapeOf{offset});
  check_beside("offset", offset, input);
  shape.offset_groups = offset.size(1) / (2 * taps);
  check(channels % shape.offset_groups == 0, "deform_conv2d: offset must be for a number of groups that divides the ",
        channels, " channels of input, got ", shape.offset_groups, " groups");
  if (mask) {
    check(mask->dim() == 4 && mask->size(0) == shape.images && mask->size(1) == shape.offset_groups * taps &&
              mask->size(2) == shape.out_height && mask->size(3) == shape.out_width,
          "deform_conv2d: mask must be [", shape.images, ", ", shape.offset_groups * taps, ", ", shape.out_height, ", ",
          shape.out_width, "], got ", ShapeOf{*mask});
    check_beside("mask", *mask, input);
  }
  return shape;
}

// Sums, and where points lie, are computed in float32; in float64 for float64.
ScalarType sum_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor in_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

Tensor channels_last_in(const Tensor& map, ScalarType type) {
  return in_format(in_type(map, type), true);
}

Tensor allocated(const Tensor& like, ScalarType type, std::initializer_list<int64_t> sizes, bool channels_last) {
  Tensor tensor = torch::stable::empty({sizes.begin(), sizes.size()}, type, std::nullopt, like.device(), std::nullopt,
                                       channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  prefer_huge_pages(tensor);
  return tensor;
}

Tensor allocated_output(const DeformConv& shape, const Tensor& like, ScalarType type, bool channels_last) {
  return allocated(like, type, {shape.images, shape.out_channels, shape.out_height, shape.out_width}, channels_last);
}

template <typename A>
const A* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<A>() : nullptr;
}

template <typename A>
A* writable(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<A*>(tensor->mutable_data_ptr()) : nullptr;
}

std::optional<Tensor> converted_or_none(const std::optional<Tensor>& tensor, ScalarType type) {
  return tensor ? std::make_optional(converted(*tensor, type)) : std::nullopt;
}

// The gradients of a call as they are computed; what nobody asked for is not there.
struct Computed {
  std::optional<Tensor> input, offset, mask, weight, bias;
};

Computed allocated_gradients(const DeformConv& shape, const Tensor& input, bool has_mask, bool for_input,
                             bool for_points, bool for_weight, bool for_bias) {
  const ScalarType type = sum_type(input.scalar_type());
  const int64_t points = shape.offset_groups * shape.taps();
  Computed computed;
  if (for_input)
    computed.input = allocated(input, type, {shape.images, shape.channels, shape.height, shape.width}, true);
  if (for_points) {
    computed.offset = allocated(input, type, {shape.images, 2 * points, shape.out_height, shape.out_width}, false);
    if (has_mask) {
      computed.mask = allocated(input, type, {shape.images, points, shape.out_height, shape.out_width}, false);
    }
  }
  if (for_weight) {
    computed.weight = allocated(
        input, type, {shape.out_channels, shape.group_channels(), shape.kernel_height, shape.kernel_width}, true);
  }
  if (for_bias) computed.bias = allocated(input, type, {shape.out_channels}, false);
  return computed;
}

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// As autograd wants them: in the types and memory formats of what they are gradients of; empty where not asked for.
Result finished(const Computed& computed, const Tensor& input, const Tensor& offset, const Tensor& weight,
                const std::optional<Tensor>& mask) {
  const auto finish = [&](const std::optional<Tensor>& gradient, const Tensor& like) {
    if (!gradient) return allocated(like, like.scalar_type(), {0}, false);
    const Tensor typed = in_type(*gradient, like.scalar_type());
    return like.dim() == 4 ? in_format(typed, prefers_channels_last(like)) : typed;
  };
  const auto finish_points = [&](const std::optional<Tensor>& gradient, const Tensor& like) {
    return gradient ? in_type(*gradient, like.scalar_type()) : allocated(like, like.scalar_type(), {0}, false);
  };
  // The bias has the weight's type.
  const Tensor bias = computed.bias ? in_type(*computed.bias, weight.scalar_type())
                                    : allocated(weight, weight.scalar_type(), {0}, false);
  return {finish(computed.input, input), finish_points(computed.offset, offset), finish(computed.weight, weight),
          finish_points(computed.mask, mask ? *mask : offset), bias};
}

void check_gradient(const Tensor& gradient, const DeformConv& shape, const Tensor& input) {
  check(gradient.dim() == 4 && gradient.size(0) == shape.images && gradient.size(1) == shape.out_channels &&
            gradient.size(2) == shape.out_height && gradient.size(3) == shape.out_width,
        "deform_conv2d_backward: grad must be [", shape.images, ", ", shape.out_channels, ", ", shape.out_height, ", ",
        shape.out_width, "], got ", ShapeOf{gradient});
  check_beside("grad", gradient, input);
}

// ---- CPU

Tensor deform_conv2d_cpu(const Tensor& input, const Tensor& offset, const Tensor& weight,
                         const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation) {
  const DeformConv shape = checked_shape(input, offset, weight, bias, mask, {stride, padding, dilation});
  const bool channels_last = prefers_channels_last(input);
  const ScalarType type = sum_type(input.scalar_type());
  const Tensor map = channels_last_in(input, type), points = converted(offset, type);
  const Tensor kernel = channels_last_in(weight, type);
  const std::optional<Tensor> masks = converted_or_none(mask, type), shift = converted_or_none(bias, type);
  const Tensor output = allocated_output(shape, input, type, channels_last);
  THO_DISPATCH_V2(type, "deform_conv2d", AT_WRAP([&] {
                    convolve<scalar_t>(shape,
                                       {map.const_data_ptr<scalar_t>(), points.const_data_ptr<scalar_t>(),
                                        data_of<scalar_t>(masks), kernel.const_data_ptr<scalar_t>()},
                                       data_of<scalar_t>(shift), channels_last,
                                       static_cast<scalar_t*>(output.mutable_data_ptr()));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return in_type(output, input.scalar_type());
}

Result deform_conv2d_backward_cpu(const Tensor& gradient, const Tensor& input, const Tensor& offset,
                                  const Tensor& weight, const std::optional<Tensor>& mask,
                                  const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                  const std::vector<int64_t>& dilation, bool for_input, bool for_points,
                                  bool for_weight, bool for_bias) {
  const DeformConv shape = checked_shape(input, offset, weight, std::nullopt, mask, {stride, padding, dilation});
  check_gradient(gradient, shape, input);
  const ScalarType type = sum_type(input.scalar_type());
  const Tensor map = channels_last_in(input, type), points = converted(offset, type);
  const Tensor kernel = channels_last_in(weight, type), sent = channels_last_in(gradient, type);
  const std::optional<Tensor> masks = converted_or_none(mask, type);
  const Computed computed =
      allocated_gradients(shape, input, mask.has_value(), for_input, for_points, for_weight, for_bias);
  THO_DISPATCH_V2(
      type, "deform_conv2d_backward", AT_WRAP([&] {
        const auto* output = sent.const_data_ptr<scalar_t>();
        if (for_input || for_points || for_weight) {
          spread_gradient<scalar_t>(shape,
                                    {map.const_data_ptr<scalar_t>(), points.const_data_ptr<scalar_t>(),
                                     data_of<scalar_t>(masks), kernel.const_data_ptr<scalar_t>()},
                                    output,
                                    {writable<scalar_t>(computed.input), writable<scalar_t>(computed.offset),
                                     writable<scalar_t>(computed.mask), writable<scalar_t>(computed.weight)});
        }
        if (for_bias) {
          sum_pixels(shape.images * shape.out_pixels(), shape.out_channels, output, writable<scalar_t>(computed.bias));
        }
      }),
      AT_EXPAND(AT_FLOATING_TYPES));
  return finished(computed, input, offset, weight, mask);
}

// ---- CUDA

#ifdef MRCNN_CUDA
DeformType deform_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return DeformType::kDouble;
    case ScalarType::Half:
      return DeformType::kHalf;
    case ScalarType::BFloat16:
      return DeformType::kBFloat16;
    default:
      return DeformType::kFloat;
  }
}

// On a boundary of 16 bytes, which a slice of another tensor may not be.
Tensor on_boundary(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0 ? tensor : torch::stable::clone(tensor);
}

// The address of element `index`.
void* element(const Tensor& tensor, int64_t index) {
  return static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())) +
         index * static_cast<int64_t>(tensor.element_size());
}

const void* address_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

void* writable_address_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->mutable_data_ptr() : nullptr;
}

// A call on the device: its operands as the kernels take them, and the matrix of columns for as many pixels at a time
// as fit into 256 MB.
struct DeviceCall {
  DeformConv shape;
  ScalarType type;
  Tensor input, offset, weight;
  std::optional<Tensor> mask;
  void* stream;
  int64_t rows;  // of the matrix of columns
  Tensor columns;

  DeviceCall(const DeformConv& shape_, const Tensor& input_, const Tensor& offset_, const Tensor& weight_,
             const std::optional<Tensor>& mask_)
      : shape(shape_),
        type(input_.scalar_type()),
        input(on_boundary(in_format(input_, true))),
        offset(converted(offset_, sum_type(type))),
        weight(on_boundary(in_format(weight_, true))),
        mask(converted_or_none(mask_, sum_type(type))),
        stream(current_stream(input_)),
        rows(rows_of()),
        columns(allocated(input, type, {rows * shape.taps() * shape.channels}, false)) {}

  int64_t rows_of() const {
    constexpr int64_t kColumns = int64_t{256} << 20;
    const int64_t fitting = kColumns / (shape.taps() * shape.channels * static_cast<int64_t>(input.element_size()));
    const int64_t plane = shape.out_pixels();
    if (fitting < plane) return std::max<int64_t>(fitting, 1);
    return std::min(shape.images, fitting / plane) * plane;
  }

  // Calls work(chunk, first row of the output) for whole images, or for parts of one where an image does not fit.
  template <typename Work>
  void for_chunks(const Work& work) const {
    const int64_t plane = shape.out_pixels(), several = rows / plane;
    for (int64_t image = 0; image < shape.images; image += std::max<int64_t>(several, 1)) {
      if (several > 0) {
        work(Chunk{image, std::min(several, shape.images - image), 0, plane}, image * plane);
      } else {
        for (int64_t first = 0; first < plane; first += rows) {
          work(Chunk{image, 1, first, std::min(rows, plane - first)}, image * plane + first);
        }
      }
    }
  }

  int64_t depth() const { return shape.taps() * shape.group_channels(); }
  int64_t outs() const { return shape.out_channels / shape.groups; }

  Tensor matrix(const Tensor& owner, int64_t first, int64_t height, int64_t width, int64_t row_stride,
                int64_t column_stride = 1) const {
    return matrix_on(owner.device(), owner.scalar_type(), element(owner, first), height, width, row_stride,
                     column_stride);
  }

  Tensor group_columns(int64_t group, int64_t height) const {
    return matrix(columns, group * height * depth(), height, depth(), depth());
  }

  void gather(const Chunk& chunk) const {
    check_launch("deform_conv2d",
                 launch_gather_columns(deform_type(type), shape, chunk, input.const_data_ptr(), offset.const_data_ptr(),
                                       address_of(mask), columns.mutable_data_ptr(), stream));
  }
};

Tensor deform_conv2d_cuda(const Tensor& input, const Tensor& offset, const Tensor& weight,
                          const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                          const std::vector<int64_t>& dilation) {
  const DeformConv shape = checked_shape(input, offset, weight, bias, mask, {stride, padding, dilation});
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const DeviceCall call(shape, input, offset, weight, mask);
  const int64_t outs = call.outs(), depth = call.depth();
  const Tensor output = allocated_output(shape, input, call.type, true);
  call.for_chunks([&](const Chunk& chunk, int64_t first) {
    call.gather(chunk);
    for (int64_t g = 0; g < shape.groups; ++g) {
      multiply(call.group_columns(g, chunk.rows()), call.matrix(call.weight, g * outs * depth, depth, outs, 1, depth),
               call.matrix(output, first * shape.out_channels + g * outs, chunk.rows(), outs, shape.out_channels));
    }
  });
  if (bias && output.numel() > 0) {
    const Tensor shift = converted(*bias, sum_type(call.type));
    check_launch("deform_conv2d",
                 launch_add_bias(deform_type(call.type), shape.images * shape.out_pixels(), shape.out_channels,
                                 shift.const_data_ptr(), output.mutable_data_ptr(), call.stream));
  }
  return in_format(output, prefers_channels_last(input));
}

Result deform_conv2d_backward_cuda(const Tensor& gradient, const Tensor& input, const Tensor& offset,
                                   const Tensor& weight, const std::optional<Tensor>& mask,
                                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                   const std::vector<int64_t>& dilation, bool for_input, bool for_points,
                                   bool for_weight, bool for_bias) {
  const DeformConv shape = checked_shape(input, offset, weight, std::nullopt, mask, {stride, padding, dilation});
  check_gradient(gradient, shape, input);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const DeviceCall call(shape, input, offset, weight, mask);
  const int64_t outs = call.outs(), depth = call.depth(), out_channels = shape.out_channels;
  const DeformType type = deform_type(call.type);
  const Tensor sent = channels_last_in(gradient, call.type);
  Computed computed = allocated_gradients(shape, input, mask.has_value(), for_input, for_points, for_weight, for_bias);
  if (computed.input) torch::stable::zero_(*computed.input);
  if (computed.weight) torch::stable::zero_(*computed.weight);
  const Tensor product = allocated(input, call.type, {for_weight ? outs * depth : 0}, false);
  // The columns' gradients take the place of the columns.
  call.for_chunks([&](const Chunk& chunk, int64_t first) {
    const int64_t rows = chunk.rows();
    if (for_input || for_points) {
      for (int64_t g = 0; g < shape.groups; ++g) {
        multiply(call.matrix(sent, first * out_channels + g * outs, rows, outs, out_channels),
                 call.matrix(call.weight, g * outs * depth, outs, depth, depth), call.group_columns(g, rows));
      }
    }
    if (for_points) {
      check_launch("deform_conv2d_backward",
                   launch_point_gradients(type, shape, chunk, call.input.const_data_ptr(), call.offset.const_data_ptr(),
                                          address_of(call.mask), call.columns.const_data_ptr(),
                                          writable_address_of(computed.offset), writable_address_of(computed.mask),
                                          call.stream));
    }
    if (for_input && input.numel() > 0) {
      const Tensor boxes = allocated(input, ScalarType::Int, {box_numbers(shape, chunk)}, false);
      check_launch("deform_conv2d_backward",
                   launch_gather_gradient(type, shape, chunk, call.offset.const_data_ptr(), address_of(call.mask),
                                          call.columns.const_data_ptr(), static_cast<int*>(boxes.mutable_data_ptr()),
                                          computed.input->mutable_data_ptr(), call.stream));
    }
    if (for_weight) {
      call.gather(chunk);
      for (int64_t g = 0; g < shape.groups; ++g) {
        multiply(call.matrix(sent, first * out_channels + g * outs, outs, rows, 1, out_channels),
                 call.group_columns(g, rows), call.matrix(product, 0, outs, depth, depth));
        check_launch("deform_conv2d_backward",
                     launch_add_product(type, outs * depth, product.const_data_ptr(),
                                        element(*computed.weight, g * outs * depth), call.stream));
      }
    }
  });
  if (for_bias) {
    const int64_t pixels[] = {0, 2, 3};
    computed.bias =
        torch::stable::sum(sent, torch::headeronly::IntHeaderOnlyArrayRef(pixels, 3), false, sum_type(call.type));
  }
  return finished(computed, input, offset, weight, mask);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[] stride, "
      "int[] padding, int[] dilation) -> Tensor");
  m.def(
      "deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, "
      "int[] padding, int[] dilation, bool for_input, bool for_points, bool for_weight, bool for_bias) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d_cpu));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward_cpu));
}

#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d_cuda));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward_cuda));
}
#endif

}  // namespace mrcnn
