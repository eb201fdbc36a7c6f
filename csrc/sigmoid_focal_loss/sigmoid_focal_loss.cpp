// Sigmoid focal loss: schema, checks, CPU kernels, host side of CUDA.
//
// One piece of work is a block of logits. Each block sums its losses in float64 and the blocks' sums are added one
// after the other, so a reduction has the same bits for any number of threads. The backward pass computes everything
// again from the logits, so nothing as large as they are is kept between the passes.
#include "sigmoid_focal_loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../common.h"
#include "blocks.h"

namespace mrcnn {
namespace {

// ---- arguments

FocalCall checked_call(const Tensor& logits, const Tensor& targets, double alpha, double gamma, int64_t reduction) {
  check(is_floating(logits.scalar_type()), "sigmoid_focal_loss: inputs must be floating point, got ",
        logits.scalar_type());
  check(logits.is_cuda() == targets.is_cuda() && logits.get_device_index() == targets.get_device_index(),
        "sigmoid_focal_loss: targets must be on the device of inputs");
  check(alpha == -1 || (alpha >= 0 && alpha <= 1), "sigmoid_focal_loss: alpha must lie in [0, 1] or be -1, got ",
        alpha);
  check(gamma >= 0 && std::isfinite(gamma), "sigmoid_focal_loss: gamma must be 0 or more, got ", gamma);
  const bool labels = targets.scalar_type() == ScalarType::Long;
  if (labels) {
    check(logits.dim() == 2, "sigmoid_focal_loss: inputs must be [N, K] beside labels, got ", ShapeOf{logits});
    check(targets.dim() == 1 && targets.size(0) == logits.size(0), "sigmoid_focal_loss: labels must be [",
          logits.size(0), "], got ", ShapeOf{targets});
  } else {
    check(targets.scalar_type() == logits.scalar_type(), "sigmoid_focal_loss: targets must be ", logits.scalar_type(),
          " as inputs are, got ", targets.scalar_type());
    bool same = targets.dim() == logits.dim();
    for (int64_t d = 0; same && d < logits.dim(); ++d) same = targets.size(d) == logits.size(d);
    check(same, "sigmoid_focal_loss: targets must be ", ShapeOf{logits}, " as inputs are, got ", ShapeOf{targets});
  }
  return {logits.numel(), labels ? logits.size(1) : 0, alpha, gamma, static_cast<Reduction>(reduction)};
}

template <typename A>
Focal<A> focal_of(const FocalCall& call) {
  return {static_cast<A>(call.alpha), static_cast<A>(call.gamma)};
}

double mean_share(const FocalCall& call) {
  return call.reduction == Reduction::kMean ? 1 / static_cast<double>(call.count) : 1;
}

// ---- CPU

constexpr int64_t kBlock = 2048;
// Beside a target of zero it has no loss and no slope: e^-10000 is zero in every type.
constexpr float kNoLogit = -1e4f;

void check_labels(const int64_t* labels, int64_t count, int64_t classes) {
  for (int64_t i = 0; i < count; ++i) {
    check(labels[i] <= classes, "sigmoid_focal_loss: labels[", i, "] is ", labels[i], ", but there are ", classes,
          " classes (", classes, " itself is the background)");
  }
}

// Rows of labels as logits and targets of one block: a number for each logit, which stay in the cache.
template <typename T>
struct LabelledBlock {
  accumulator_t<T> targets[kBlock];
  T logits[kBlock];

  // Returns the logits to take: the given ones, or a copy in which those of rows that don't count have no loss and no
  // slope.
  const T* fill(const T* all, const int64_t* labels, int64_t classes, int64_t begin, int64_t count) {
    std::fill_n(targets, count, accumulator_t<T>(0));
    bool copied = false;
    const int64_t end = begin + count;
    for (int64_t row = begin / classes; row * classes < end; ++row) {
      const int64_t first = row * classes, hit = first + labels[row];
      if (labels[row] < 0) {
        if (!copied) std::memcpy(logits, all + begin, count * sizeof(T));
        copied = true;
        std::fill(logits + std::max(first - begin, int64_t{0}), logits + std::min(first + classes - begin, count),
                  static_cast<T>(kNoLogit));
      } else if (labels[row] < classes && hit >= begin && hit < end) {
        targets[hit - begin] = accumulator_t<T>(1);
      }
    }
    return copied ? logits : all + begin;
  }
};

// Calls body(block, begin, count, logits, targets), with targets in T or, for labels, in its accumulation type.
template <typename T, typename Body>
void for_each_block(const FocalCall& call, const T* logits, const Tensor& targets, const Body& body) {
  const int64_t blocks = (call.count + kBlock - 1) / kBlock;
  if (call.classes > 0) check_labels(targets.const_data_ptr<int64_t>(), targets.size(0), call.classes);
  parallel_for(0, blocks, 8, [&](int64_t first, int64_t last) {
    LabelledBlock<T> labelled;
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlock, count = std::min(kBlock, call.count - begin);
      if (call.classes > 0) {
        const T* taken = labelled.fill(logits, targets.const_data_ptr<int64_t>(), call.classes, begin, count);
        body(block, begin, count, taken, static_cast<const accumulator_t<T>*>(labelled.targets));
      } else {
        body(block, begin, count, logits + begin, static_cast<const T*>(targets.const_data_ptr()) + begin);
      }
    }
  });
}

Tensor sigmoid_focal_loss_cpu(const Tensor& inputs, const Tensor& targets, double alpha, double gamma,
                              int64_t reduction) {
  const FocalCall call = checked_call(inputs, targets, alpha, gamma, reduction);
  const Tensor logits = torch::stable::contiguous(inputs), truth = torch::stable::contiguous(targets);
  const bool each = call.reduction == Reduction::kNone;
  Tensor losses = each ? torch::stable::new_empty(logits, logits.sizes()) : torch::stable::new_empty(logits, {});
  prefer_huge_pages(losses);
  std::vector<double> partial((call.count + kBlock - 1) / kBlock);
  THO_DISPATCH_V2(logits.scalar_type(), "sigmoid_focal_loss", AT_WRAP([&] {
                    using A = accumulator_t<scalar_t>;
                    auto* out = static_cast<scalar_t*>(losses.mutable_data_ptr());
                    for_each_block(call, static_cast<const scalar_t*>(logits.const_data_ptr()), truth,
                                   [&, focal = focal_of<A>(call)](int64_t block, int64_t begin, int64_t count,
                                                                  const scalar_t* x, const auto* t) {
                                     using U = std::remove_const_t<std::remove_pointer_t<decltype(t)>>;
                                     const auto kernel = chosen_losses<scalar_t, U>(call.gamma);
                                     partial[block] = kernel(x, t, count, focal, each ? out + begin : nullptr);
                                   });
                    if (!each) {
                      double sum = 0;
                      for (const double block : partial) sum += block;
                      // as in PyTorch, the mean of nothing is NaN
                      *out = static_cast<scalar_t>(static_cast<A>(
                          call.reduction == Reduction::kMean ? sum / static_cast<double>(call.count) : sum));
                    }
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return losses;
}

void check_gradient(const Tensor& gradient, const Tensor& inputs, const FocalCall& call) {
  const int64_t expected = call.reduction == Reduction::kNone ? call.count : 1;
  check(gradient.numel() == expected && gradient.scalar_type() == inputs.scalar_type(),
        "sigmoid_focal_loss_backward: grad must hold ", expected, " numbers of inputs' type, got ", ShapeOf{gradient},
        " ", gradient.scalar_type());
}

Tensor sigmoid_focal_loss_backward_cpu(const Tensor& gradient, const Tensor& inputs, const Tensor& targets,
                                       double alpha, double gamma, int64_t reduction) {
  const FocalCall call = checked_call(inputs, targets, alpha, gamma, reduction);
  check_gradient(gradient, inputs, call);
  const Tensor logits = torch::stable::contiguous(inputs), truth = torch::stable::contiguous(targets);
  const Tensor upstream = torch::stable::contiguous(gradient);
  Tensor gradients = torch::stable::new_empty(logits, logits.sizes());
  prefer_huge_pages(gradients);
  THO_DISPATCH_V2(logits.scalar_type(), "sigmoid_focal_loss_backward", AT_WRAP([&] {
                    using A = accumulator_t<scalar_t>;
                    auto* out = static_cast<scalar_t*>(gradients.mutable_data_ptr());
                    const auto* given = static_cast<const scalar_t*>(upstream.const_data_ptr());
                    const bool each = call.reduction == Reduction::kNone;
                    const A same = each ? A(0) : static_cast<A>(static_cast<double>(*given) * mean_share(call));
                    for_each_block(call, static_cast<const scalar_t*>(logits.const_data_ptr()), truth,
                                   [&, focal = focal_of<A>(call)](int64_t, int64_t begin, int64_t count,
                                                                  const scalar_t* x, const auto* t) {
                                     using U = std::remove_const_t<std::remove_pointer_t<decltype(t)>>;
                                     const auto kernel = each ? chosen_gradients<true, scalar_t, U>(call.gamma)
                                                              : chosen_gradients<false, scalar_t, U>(call.gamma);
                                     kernel(x, t, count, focal, each ? given + begin : nullptr, same, out + begin);
                                   });
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return gradients;
}

// ---- CUDA

#ifdef MRCNN_CUDA
FocalType focal_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return FocalType::kDouble;
    case ScalarType::Half:
      return FocalType::kHalf;
    case ScalarType::BFloat16:
      return FocalType::kBFloat16;
    default:
      return FocalType::kFloat;
  }
}

Tensor sigmoid_focal_loss_cuda(const Tensor& inputs, const Tensor& targets, double alpha, double gamma,
                               int64_t reduction) {
  const FocalCall call = checked_call(inputs, targets, alpha, gamma, reduction);
  const torch::stable::accelerator::DeviceGuard guard(inputs.get_device_index());
  const Tensor logits = torch::stable::contiguous(inputs), truth = torch::stable::contiguous(targets);
  const bool each = call.reduction == Reduction::kNone;
  Tensor losses = each ? torch::stable::new_empty(logits, logits.sizes()) : torch::stable::new_empty(logits, {});
  if (each && call.count == 0) return losses;
  Tensor partial = torch::stable::new_empty(logits, {each ? 0 : focal_loss_blocks(call.count)}, ScalarType::Double);
  check_launch("sigmoid_focal_loss",
               launch_focal_loss(focal_type(logits.scalar_type()), call, logits.const_data_ptr(),
                                 truth.const_data_ptr(), static_cast<double*>(partial.mutable_data_ptr()),
                                 losses.mutable_data_ptr(), current_stream(logits)));
  return losses;
}

Tensor sigmoid_focal_loss_backward_cuda(const Tensor& gradient, const Tensor& inputs, const Tensor& targets,
                                        double alpha, double gamma, int64_t reduction) {
  const FocalCall call = checked_call(inputs, targets, alpha, gamma, reduction);
  check_gradient(gradient, inputs, call);
  const torch::stable::accelerator::DeviceGuard guard(inputs.get_device_index());
  const Tensor logits = torch::stable::contiguous(inputs), truth = torch::stable::contiguous(targets);
  const Tensor upstream = torch::stable::contiguous(gradient);
  Tensor gradients = torch::stable::new_empty(logits, logits.sizes());
  if (call.count == 0) return gradients;
  check_launch("sigmoid_focal_loss_backward",
               launch_focal_loss_backward(focal_type(logits.scalar_type()), call, logits.const_data_ptr(),
                                          truth.const_data_ptr(), upstream.const_data_ptr(),
                                          gradients.mutable_data_ptr(), current_stream(logits)));
  return gradients;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def("sigmoid_focal_loss(Tensor inputs, Tensor targets, float alpha, float gamma, int reduction) -> Tensor");
  m.def(
      "sigmoid_focal_loss_backward(Tensor grad, Tensor inputs, Tensor targets, float alpha, float gamma, "
      "int reduction) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss_cpu));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward_cpu));
}

#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss_cuda));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward_cuda));
}
#endif

}  // namespace mrcnn
