// Boxes as deltas to anchors, and back; boxes cut to an image.
#include "box_coding.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>

#include "../common.h"

namespace mrcnn {
namespace {

constexpr int64_t kGrain = 8192;  // boxes: fewer are done before other threads have woken up

// Logarithms and exponentials are PyTorch's own, so that the results have the bits of the same formula written in its
// operators: other libraries' differ in the last one.
void in_place(const char* op, const Tensor& tensor) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(tensor)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

template <typename T>
void size_ratios(const T* boxes, const T* anchors, int64_t rows, T* ratios) {
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T *box = boxes + 4 * r, *anchor = anchors + 4 * r;
      for (int axis = 0; axis < 2; ++axis) {
        ratios[2 * r + axis] = size_ratio(box[axis], box[axis + 2], anchor[axis], anchor[axis + 2]);
      }
    }
  });
}

template <typename T>
void encode(const T* boxes, const T* anchors, const T* logarithms, int64_t rows, const Coding<T>& coding, T* deltas) {
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T *box = boxes + 4 * r, *anchor = anchors + 4 * r;
      for (int axis = 0; axis < 2; ++axis) {
        deltas[4 * r + axis] =
            encoded_shift(box[axis], box[axis + 2], anchor[axis], anchor[axis + 2]) * coding.weights[axis];
        deltas[4 * r + axis + 2] = logarithms[2 * r + axis] * coding.weights[axis + 2];
      }
    }
  });
}

template <typename T>
void encode_backward(const T* gradient, const T* boxes, const T* anchors, int64_t rows, const Coding<T>& coding,
                     T* to_boxes, T* to_anchors) {
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t low = 4 * r; low < 4 * r + 2; ++low) {
        const int axis = static_cast<int>(low - 4 * r);
        encode_axis_backward(gradient[low] * coding.weights[axis], gradient[low + 2] * coding.weights[axis + 2],
                             boxes[low], boxes[low + 2], anchors[low], anchors[low + 2], to_boxes + low,
                             to_boxes + low + 2, to_anchors + low, to_anchors + low + 2);
      }
    }
  });
}

template <typename T>
void limit_sizes(const T* deltas, int64_t rows, const Coding<T>& coding, T* sizes) {
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      sizes[2 * r] = limited(deltas[4 * r + 2], coding.weights[2], coding.clamp);
      sizes[2 * r + 1] = limited(deltas[4 * r + 3], coding.weights[3], coding.clamp);
    }
  });
}

template <typename T>
void decode(const T* deltas, const T* anchors, const T* scales, int64_t rows, const Coding<T>& coding, T* boxes) {
  const bool paired = coding.repeats == 1 && coding.anchors == rows;
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* anchor = anchors + 4 * (paired ? r : coding.anchor_of(r));
      for (int axis = 0; axis < 2; ++axis) {
        decode_axis(deltas[4 * r + axis], coding.weights[axis], scales[2 * r + axis], anchor[axis], anchor[axis + 2],
                    boxes + 4 * r + axis, boxes + 4 * r + axis + 2);
      }
    }
  });
}

// Each thread owns anchors and all rows that belong to them, in rising order.
template <typename T>
void decode_backward(const T* gradient, const T* deltas, const T* anchors, const T* scales, int64_t rows,
                     const Coding<T>& coding, T* to_deltas, T* to_anchors) {
  const int64_t round = coding.anchors * coding.repeats;
  const int64_t each = std::max<int64_t>(1, rows / std::max<int64_t>(coding.anchors, 1));
  parallel_for(0, coding.anchors, std::max<int64_t>(1, kGrain / each), [&](int64_t begin, int64_t end) {
    std::fill(to_anchors + 4 * begin, to_anchors + 4 * end, T(0));
    for (int64_t first = 0; first < rows; first += round) {
      for (int64_t r = first + begin * coding.repeats; r < first + end * coding.repeats; ++r) {
        const int64_t a = coding.anchor_of(r);
        for (int axis = 0; axis < 2; ++axis) {
          decode_axis_backward(gradient[4 * r + axis], gradient[4 * r + axis + 2], deltas[4 * r + axis],
                               coding.weights[axis], deltas[4 * r + axis + 2], coding.weights[axis + 2], coding.clamp,
                               scales[2 * r + axis], anchors[4 * a + axis], anchors[4 * a + axis + 2],
                               to_deltas + 4 * r + axis, to_deltas + 4 * r + axis + 2, to_anchors + 4 * a + axis,
                               to_anchors + 4 * a + axis + 2);
        }
      }
    }
  });
}

template <typename T>
void clip(const T* boxes, int64_t rows, T height, T width, T* clipped_boxes) {
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = 4 * begin; i < 4 * end; i += 2) {
      clipped_boxes[i] = clipped(boxes[i], width);
      clipped_boxes[i + 1] = clipped(boxes[i + 1], height);
    }
  });
}

template <typename T>
void clip_backward(const T* gradient, const T* boxes, int64_t rows, T height, T width, T* to_boxes) {
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = 4 * begin; i < 4 * end; i += 2) {
      to_boxes[i] = is_inside(boxes[i], width) ? gradient[i] : T(0);
      to_boxes[i + 1] = is_inside(boxes[i + 1], height) ? gradient[i + 1] : T(0);
    }
  });
}

// A tensor of boxes or deltas as an operator takes it.
struct Argument {
  const char* name;
  const Tensor& tensor;
};

void check_rows(const char* op, std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  for (const Argument& argument : arguments) {
    const Tensor& tensor = argument.tensor;
    check(tensor.dim() == 2 && tensor.size(1) == 4, op, ": ", argument.name, " must be [N, 4], got ", ShapeOf{tensor});
    check(is_floating(tensor.scalar_type()), op, ": ", argument.name, " must be floating point, got ",
          tensor.scalar_type());
    check(tensor.scalar_type() == first.tensor.scalar_type(), op, ": ", argument.name, " must have the type of ",
          first.name, ", got ", tensor.scalar_type(), " for ", first.tensor.scalar_type());
    check(tensor.is_cuda() == first.tensor.is_cuda() && tensor.get_device_index() == first.tensor.get_device_index(),
          op, ": ", argument.name, " must be on the device of ", first.name);
  }
}

void check_as_many(const char* op, const Argument& argument, const Tensor& other) {
  check(argument.tensor.size(0) == other.size(0), op, ": ", argument.name, " must be ", ShapeOf{other}, ", got ",
        ShapeOf{argument.tensor});
}

void check_weights(const char* op, const std::vector<double>& weights) {
  check(weights.size() == 4, op, ": weights must be 4 numbers, got ", weights.size());
}

void check_anchors(const char* op, const Tensor& deltas, const Tensor& anchors, int64_t repeats) {
  const int64_t round = anchors.size(0) * repeats;
  check(deltas.size(0) == 0 || (round > 0 && deltas.size(0) % round == 0), op, ": ", deltas.size(0),
        " deltas do not fit ", anchors.size(0), " anchors, each for ", repeats);
}

ScalarType computed_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Dense, and half precision in float32.
Tensor computed(const Tensor& tensor) {
  return converted(tensor, computed_type(tensor));
}

// Calls `work` with a zero of the type that is computed in.
template <typename Work>
void in_type_of(const Tensor& tensor, const Work& work) {
  if (tensor.scalar_type() == ScalarType::Double) {
    work(double{0});
  } else {
    work(float{0});
  }
}

template <typename T>
Coding<T> coding_in(const std::vector<double>& weights, double clamp, int64_t anchors, int64_t repeats) {
  Coding<T> coding{{}, static_cast<T>(clamp), anchors, repeats};
  for (int k = 0; k < 4; ++k) coding.weights[k] = static_cast<T>(weights[k]);
  return coding;
}

// Each operator is one function for both devices: the checks and the tensors are the same.
#ifdef MRCNN_CUDA
using torch::stable::accelerator::DeviceGuard;
#endif

Tensor encode_boxes(const Tensor& boxes, const Tensor& anchors, const std::vector<double>& weights) {
  check_rows("encode", {{"boxes", boxes}, {"anchors", anchors}});
  check_as_many("encode", {"anchors", anchors}, boxes);
  check_weights("encode", weights);
  const int64_t rows = boxes.size(0);
  const Tensor box = computed(boxes), anchor = computed(anchors);
  Tensor deltas = torch::stable::empty_like(box);
  if (rows == 0) return converted(deltas, boxes.scalar_type());
#ifdef MRCNN_CUDA
  if (boxes.is_cuda()) {
    const DeviceGuard guard(boxes.get_device_index());
    in_type_of(box, [&](auto zero) {
      using scalar_t = decltype(zero);
      check_launch("encode", launch_encode<scalar_t>(box.const_data_ptr<scalar_t>(), anchor.const_data_ptr<scalar_t>(),
                                                     rows, coding_in<scalar_t>(weights, 0, rows, 1),
                                                     deltas.mutable_data_ptr<scalar_t>(), current_stream(box)));
    });
    return converted(deltas, boxes.scalar_type());
  }
#endif
  Tensor ratios = torch::stable::new_empty(box, {rows, 2});
  in_type_of(box, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto* from = box.const_data_ptr<scalar_t>();
    const auto* to = anchor.const_data_ptr<scalar_t>();
    size_ratios(from, to, rows, ratios.mutable_data_ptr<scalar_t>());
    in_place("aten::log_", ratios);
    encode(from, to, ratios.const_data_ptr<scalar_t>(), rows, coding_in<scalar_t>(weights, 0, rows, 1),
           deltas.mutable_data_ptr<scalar_t>());
  });
  return converted(deltas, boxes.scalar_type());
}

std::tuple<Tensor, Tensor> encode_boxes_backward(const Tensor& grad, const Tensor& boxes, const Tensor& anchors,
                                                 const std::vector<double>& weights) {
  check_rows("encode_backward", {{"boxes", boxes}, {"anchors", anchors}, {"grad", grad}});
  check_as_many("encode_backward", {"anchors", anchors}, boxes);
  check_as_many("encode_backward", {"grad", grad}, boxes);
  check_weights("encode_backward", weights);
  const int64_t rows = boxes.size(0);
  const Tensor gradient = computed(grad), box = computed(boxes), anchor = computed(anchors);
  Tensor to_boxes = torch::stable::empty_like(box), to_anchors = torch::stable::empty_like(box);
  const auto pointers = [&](auto work) {
    in_type_of(box, [&](auto zero) {
      using scalar_t = decltype(zero);
      work(gradient.const_data_ptr<scalar_t>(), box.const_data_ptr<scalar_t>(), anchor.const_data_ptr<scalar_t>(),
           coding_in<scalar_t>(weights, 0, rows, 1), to_boxes.mutable_data_ptr<scalar_t>(),
           to_anchors.mutable_data_ptr<scalar_t>());
    });
  };
  if (rows == 0) return {converted(to_boxes, boxes.scalar_type()), converted(to_anchors, boxes.scalar_type())};
#ifdef MRCNN_CUDA
  if (boxes.is_cuda()) {
    const DeviceGuard guard(boxes.get_device_index());
    pointers([&](auto* g, auto* b, auto* a, const auto& coding, auto* to_b, auto* to_a) {
      check_launch("encode_backward", launch_encode_backward(g, b, a, rows, coding, to_b, to_a, current_stream(box)));
    });
    return {converted(to_boxes, boxes.scalar_type()), converted(to_anchors, boxes.scalar_type())};
  }
#endif
  pointers([&](auto* g, auto* b, auto* a, const auto& coding, auto* to_b, auto* to_a) {
    encode_backward(g, b, a, rows, coding, to_b, to_a);
  });
  return {converted(to_boxes, boxes.scalar_type()), converted(to_anchors, boxes.scalar_type())};
}

Tensor decode_boxes(const Tensor& deltas, const Tensor& anchors, int64_t repeats, const std::vector<double>& weights,
                    double clamp) {
  check_rows("decode", {{"deltas", deltas}, {"anchors", anchors}});
  check_anchors("decode", deltas, anchors, repeats);
  check_weights("decode", weights);
  const int64_t rows = deltas.size(0);
  const Tensor delta = computed(deltas), anchor = computed(anchors);
  Tensor boxes = torch::stable::empty_like(delta);
  if (rows == 0) return converted(boxes, deltas.scalar_type());
#ifdef MRCNN_CUDA
  if (deltas.is_cuda()) {
    const DeviceGuard guard(deltas.get_device_index());
    in_type_of(delta, [&](auto zero) {
      using scalar_t = decltype(zero);
      check_launch("decode",
                   launch_decode<scalar_t>(delta.const_data_ptr<scalar_t>(), anchor.const_data_ptr<scalar_t>(), rows,
                                           coding_in<scalar_t>(weights, clamp, anchors.size(0), repeats),
                                           boxes.mutable_data_ptr<scalar_t>(), current_stream(delta)));
    });
    return converted(boxes, deltas.scalar_type());
  }
#endif
  prefer_huge_pages(boxes);
  Tensor scales = torch::stable::new_empty(delta, {rows, 2});
  in_type_of(delta, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto coding = coding_in<scalar_t>(weights, clamp, anchors.size(0), repeats);
    const auto* from = delta.const_data_ptr<scalar_t>();
    limit_sizes(from, rows, coding, scales.mutable_data_ptr<scalar_t>());
    in_place("aten::exp_", scales);
    decode(from, anchor.const_data_ptr<scalar_t>(), scales.const_data_ptr<scalar_t>(), rows, coding,
           boxes.mutable_data_ptr<scalar_t>());
  });
  return converted(boxes, deltas.scalar_type());
}

std::tuple<Tensor, Tensor> decode_boxes_backward(const Tensor& grad, const Tensor& deltas, const Tensor& anchors,
                                                 int64_t repeats, const std::vector<double>& weights, double clamp) {
  check_rows("decode_backward", {{"deltas", deltas}, {"anchors", anchors}, {"grad", grad}});
  check_anchors("decode_backward", deltas, anchors, repeats);
  check_as_many("decode_backward", {"grad", grad}, deltas);
  check_weights("decode_backward", weights);
  const int64_t rows = deltas.size(0);
  const Tensor gradient = computed(grad), delta = computed(deltas), anchor = computed(anchors);
  Tensor to_deltas = torch::stable::empty_like(delta), to_anchors = torch::stable::empty_like(anchor);
#ifdef MRCNN_CUDA
  if (deltas.is_cuda()) {
    const DeviceGuard guard(deltas.get_device_index());
    if (anchors.size(0) > 0) {
      in_type_of(delta, [&](auto zero) {
        using scalar_t = decltype(zero);
        check_launch("decode_backward", launch_decode_backward<scalar_t>(
                                            gradient.const_data_ptr<scalar_t>(), delta.const_data_ptr<scalar_t>(),
                                            anchor.const_data_ptr<scalar_t>(), rows,
                                            coding_in<scalar_t>(weights, clamp, anchors.size(0), repeats),
                                            to_deltas.mutable_data_ptr<scalar_t>(),
                                            to_anchors.mutable_data_ptr<scalar_t>(), current_stream(delta)));
      });
    }
    return {converted(to_deltas, deltas.scalar_type()), converted(to_anchors, deltas.scalar_type())};
  }
#endif
  Tensor scales = torch::stable::new_empty(delta, {rows, 2});
  in_type_of(delta, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto coding = coding_in<scalar_t>(weights, clamp, anchors.size(0), repeats);
    const auto* from = delta.const_data_ptr<scalar_t>();
    limit_sizes(from, rows, coding, scales.mutable_data_ptr<scalar_t>());
    in_place("aten::exp_", scales);
    decode_backward(gradient.const_data_ptr<scalar_t>(), from, anchor.const_data_ptr<scalar_t>(),
                    scales.const_data_ptr<scalar_t>(), rows, coding, to_deltas.mutable_data_ptr<scalar_t>(),
                    to_anchors.mutable_data_ptr<scalar_t>());
  });
  return {converted(to_deltas, deltas.scalar_type()), converted(to_anchors, deltas.scalar_type())};
}

Tensor clip_boxes(const Tensor& boxes, double height, double width) {
  check_rows("clip_boxes", {{"boxes", boxes}});
  const int64_t rows = boxes.size(0);
  const Tensor box = computed(boxes);
  Tensor inside = torch::stable::empty_like(box);
  if (rows == 0) return converted(inside, boxes.scalar_type());
  in_type_of(box, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto* from = box.const_data_ptr<scalar_t>();
    auto* to = inside.mutable_data_ptr<scalar_t>();
    const auto y = static_cast<scalar_t>(height), x = static_cast<scalar_t>(width);
#ifdef MRCNN_CUDA
    if (boxes.is_cuda()) {
      const DeviceGuard guard(boxes.get_device_index());
      return check_launch("clip_boxes", launch_clip(from, rows, y, x, to, current_stream(box)));
    }
#endif
    clip(from, rows, y, x, to);
  });
  return converted(inside, boxes.scalar_type());
}

Tensor clip_boxes_backward(const Tensor& grad, const Tensor& boxes, double height, double width) {
  check_rows("clip_boxes_backward", {{"boxes", boxes}, {"grad", grad}});
  check_as_many("clip_boxes_backward", {"grad", grad}, boxes);
  const int64_t rows = boxes.size(0);
  const Tensor gradient = computed(grad), box = computed(boxes);
  Tensor to_boxes = torch::stable::empty_like(box);
  if (rows == 0) return converted(to_boxes, boxes.scalar_type());
  in_type_of(box, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto *by = gradient.const_data_ptr<scalar_t>(), *from = box.const_data_ptr<scalar_t>();
    auto* to = to_boxes.mutable_data_ptr<scalar_t>();
    const auto y = static_cast<scalar_t>(height), x = static_cast<scalar_t>(width);
#ifdef MRCNN_CUDA
    if (boxes.is_cuda()) {
      const DeviceGuard guard(boxes.get_device_index());
      return check_launch("clip_boxes_backward", launch_clip_backward(by, from, rows, y, x, to, current_stream(box)));
    }
#endif
    clip_backward(by, from, rows, y, x, to);
  });
  return converted(to_boxes, boxes.scalar_type());
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("encode_boxes", TORCH_BOX(&encode_boxes));
  m.impl("encode_boxes_backward", TORCH_BOX(&encode_boxes_backward));
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes));
  m.impl("decode_boxes_backward", TORCH_BOX(&decode_boxes_backward));
  m.impl("clip_boxes", TORCH_BOX(&clip_boxes));
  m.impl("clip_boxes_backward", TORCH_BOX(&clip_boxes_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def("encode_boxes(Tensor boxes, Tensor anchors, float[] weights) -> Tensor");
  m.def("encode_boxes_backward(Tensor grad, Tensor boxes, Tensor anchors, float[] weights) -> (Tensor, Tensor)");
  m.def("decode_boxes(Tensor deltas, Tensor anchors, SymInt repeats, float[] weights, float clamp) -> Tensor");
  m.def(
      "decode_boxes_backward(Tensor grad, Tensor deltas, Tensor anchors, SymInt repeats, float[] weights, "
      "float clamp) -> (Tensor, Tensor)");
  m.def("clip_boxes(Tensor boxes, float height, float width) -> Tensor");
  m.def("clip_boxes_backward(Tensor grad, Tensor boxes, float height, float width) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  implement(m);
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  implement(m);
}
#endif

}  // namespace mrcnn
