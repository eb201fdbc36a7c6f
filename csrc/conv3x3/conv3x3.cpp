// A 3x3 convolution with stride 1 on the CPU: schema, checks, the choice of vectors. The arithmetic is in winograd.h.
//
// There is no kernel for GPUs: cuDNN chooses this algorithm by itself.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "../buffer.h"
#include "../common.h"
#include "../vectors.h"

namespace mrcnn {
namespace {

// A call's sizes. Input and output are channels last: [image, y, x, channel].
struct Conv3x3 {
  int64_t images, channels, outputs, height, width, tiles_y, tiles_x;
  bool relu;

  int64_t tiles() const { return images * tiles_y * tiles_x; }
};

// What joins the sums; nullptr where there is none.
template <typename Number>
struct Added {
  const Number *bias, *shortcut;  // [output], and as the output
};

constexpr int kPoints = 16;
constexpr int kTilesPerBlock = 28;

namespace plain {

using Number = float;
typedef Number Vector __attribute__((vector_size(16)));
constexpr int kLanes = 4, kRows = 6;
inline Vector broadcast(Number value) {
  return Vector{value, value, value, value};
}
inline Vector fused(Vector a, Vector b, Vector c) {
  return a * b + c;
}
#include "winograd.h"

}  // namespace plain

// For gradients that are checked in double; nobody waits for it.
namespace plain_double {

using Number = double;
typedef Number Vector __attribute__((vector_size(16)));
constexpr int kLanes = 2, kRows = 6;
inline Vector broadcast(Number value) {
  return Vector{value, value};
}
inline Vector fused(Vector a, Vector b, Vector c) {
  return a * b + c;
}
#include "winograd.h"

}  // namespace plain_double

#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {

using namespace mrcnn::avx2;
using Number = float;
using Vector = Floats;
constexpr int kRows = 6;
#include "winograd.h"

}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma,f16c")
namespace avx512 {

using namespace mrcnn::avx512;
using Number = float;
using Vector = Floats;
constexpr int kRows = 14;
#include "winograd.h"

}  // namespace avx512
#pragma GCC pop_options
#endif

auto chosen_convolve() {
#ifdef __x86_64__
  if (has_avx512()) return &avx512::convolve;
  if (has_avx2()) return &avx2::convolve;
#endif
  return &plain::convolve;
}

template <typename Number>
void convolve(const Conv3x3& conv, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
              const std::optional<Tensor>& shortcut, const Tensor& output) {
  const int64_t strides[] = {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
  const auto chosen = [] {
    if constexpr (std::is_same_v<Number, double>) {
      return &plain_double::convolve;
    } else {
      return chosen_convolve();
    }
  }();
  chosen(conv, input.const_data_ptr<Number>(), weight.const_data_ptr<Number>(), strides,
         Added<Number>{bias ? bias->const_data_ptr<Number>() : nullptr,
                       shortcut ? shortcut->const_data_ptr<Number>() : nullptr},
         output.mutable_data_ptr<Number>());
}

Tensor conv3x3_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& shortcut, bool relu) {
  check(input.dim() == 4, "conv3x3: input must be [N, C, H, W], got ", ShapeOf{input});
  check(weight.dim() == 4 && weight.size(1) == input.size(1) && weight.size(2) == 3 && weight.size(3) == 3,
        "conv3x3: weight must be [C_out, ", input.size(1), ", 3, 3], got ", ShapeOf{weight});
  const int64_t images = input.size(0), outputs = weight.size(0), height = input.size(2), width = input.size(3);
  check(!bias || (bias->dim() == 1 && bias->size(0) == outputs), "conv3x3: bias must be [", outputs, "], got ",
        ShapeOf{bias.value_or(weight)});
  check(!shortcut || (shortcut->dim() == 4 && shortcut->size(0) == images && shortcut->size(1) == outputs &&
                      shortcut->size(2) == height && shortcut->size(3) == width),
        "conv3x3: shortcut must be [", images, ", ", outputs, ", ", height, ", ", width, "], got ",
        ShapeOf{shortcut.value_or(weight)});
  const ScalarType type = input.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, "conv3x3: input must be float32 or float64");
  for (const Tensor& tensor : {weight, bias.value_or(weight), shortcut.value_or(weight)}) {
    check(tensor.is_cpu() && tensor.scalar_type() == type,
          "conv3x3: weight, bias and shortcut must be on the CPU and of the type of input");
  }
  const Conv3x3 conv{images, input.size(1), outputs, height, width, (height + 1) / 2, (width + 1) / 2, relu};
  const Tensor output = torch::stable::empty({images, outputs, height, width}, type, std::nullopt, input.device(),
                                             std::nullopt, MemoryFormat::ChannelsLast);
  prefer_huge_pages(output);
  if (output.numel() == 0) return output;
  const Tensor map = in_format(input, true);
  std::optional<Tensor> shift, other;
  if (bias) shift = torch::stable::contiguous(*bias);
  if (shortcut) other = in_format(*shortcut, true);
  if (type == ScalarType::Double) {
    convolve<double>(conv, map, weight, shift, other, output);
  } else {
    convolve<float>(conv, map, weight, shift, other, output);
  }
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def("conv3x3(Tensor input, Tensor weight, Tensor? bias, Tensor? shortcut, bool relu) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&conv3x3_cpu));
}

}  // namespace mrcnn
