// Overlaps of boxes: of every pair of two lists, and of two lists box by box.
#include "box_iou.h"

#include <algorithm>
#include <tuple>

#include "../common.h"

namespace mrcnn {
namespace {

// The second list, one array per coordinate, so that the compiler can take several of its boxes at a time.
template <typename T>
struct Columns {
  std::vector<T> x1, y1, x2, y2;

  Columns(const T* boxes, int64_t count) : x1(count), y1(count), x2(count), y2(count) {
    for (int64_t j = 0; j < count; ++j) {
      x1[j] = boxes[4 * j];
      y1[j] = boxes[4 * j + 1];
      x2[j] = boxes[4 * j + 2];
      y2[j] = boxes[4 * j + 3];
    }
  }
};

template <Measure kMeasure, typename T>
HOST_DEVICE void measure_row(const T* box, const Columns<T>& others, int64_t count, T* __restrict__ row) {
  const Corners<T> a = corners_at(box);
  const T *x1 = others.x1.data(), *y1 = others.y1.data(), *x2 = others.x2.data(), *y2 = others.y2.data();
  for (int64_t j = 0; j < count; ++j) {
    row[j] = measured<kMeasure>(a, Corners<T>{x1[j], y1[j], x2[j], y2[j]}, T(0));
  }
}

template <Measure kMeasure, typename T>
void measure_row_plain(const T* box, const Columns<T>& others, int64_t count, T* row) {
  measure_row<kMeasure>(box, others, count, row);
}

#ifdef __x86_64__
// The same code, compiled for wider vectors: the same operations, so the same bits.
template <Measure kMeasure, typename T>
__attribute__((target("avx2"))) void measure_row_avx2(const T* box, const Columns<T>& others, int64_t count, T* row) {
  measure_row<kMeasure>(box, others, count, row);
}
#endif

template <Measure kMeasure, typename T>
auto chosen_measure_row() {
#ifdef __x86_64__
  if (has_avx2()) return &measure_row_avx2<kMeasure, T>;
#endif
  return &measure_row_plain<kMeasure, T>;
}

// Few pairs are done before other threads have woken up.
int64_t grain_of(int64_t pairs_each) {
  return std::max<int64_t>(1, (int64_t{1} << 16) / std::max<int64_t>(pairs_each, 1));
}

template <typename T>
void measure_pairs(Measure measure, const T* boxes1, int64_t rows, const T* boxes2, int64_t columns, T* overlaps) {
  const Columns<T> others(boxes2, columns);
  with_measure(measure, [&](auto constant) {
    constexpr Measure kMeasure = decltype(constant)::value;
    const auto measure_one = chosen_measure_row<kMeasure, T>();
    parallel_for(0, rows, grain_of(columns), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) measure_one(boxes1 + 4 * i, others, columns, overlaps + i * columns);
    });
  });
}

// Each thread owns rows of the first gradient, then columns of the second; every sum runs in the order of the list.
template <typename T>
void differentiate_pairs(Measure measure, const T* gradient, const T* boxes1, int64_t rows, const T* boxes2,
                         int64_t columns, T* gradient1, T* gradient2) {
  with_measure(measure, [&](auto constant) {
    constexpr Measure kMeasure = decltype(constant)::value;
    parallel_for(0, rows, grain_of(columns), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::fill_n(gradient1 + 4 * i, 4, T(0));
        for (int64_t j = 0; j < columns; ++j) {
          add_derivatives<kMeasure, T>(corners_at(boxes1 + 4 * i), corners_at(boxes2 + 4 * j), T(0),
                                       gradient[i * columns + j], gradient1 + 4 * i, nullptr);
        }
      }
    });
    parallel_for(0, columns, grain_of(rows), [&](int64_t begin, int64_t end) {
      std::fill(gradient2 + 4 * begin, gradient2 + 4 * end, T(0));
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = begin; j < end; ++j) {
          add_derivatives<kMeasure, T>(corners_at(boxes1 + 4 * i), corners_at(boxes2 + 4 * j), T(0),
                                       gradient[i * columns + j], nullptr, gradient2 + 4 * j);
        }
      }
    });
  });
}

template <typename T>
void measure_paired(Measure measure, const T* boxes1, const T* boxes2, int64_t count, T eps, T* overlaps) {
  with_measure(measure, [&](auto constant) {
    constexpr Measure kMeasure = decltype(constant)::value;
    parallel_for(0, count, grain_of(4), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        overlaps[i] = measured<kMeasure>(corners_at(boxes1 + 4 * i), corners_at(boxes2 + 4 * i), eps);
      }
    });
  });
}

template <typename T>
void differentiate_paired(Measure measure, const T* gradient, const T* boxes1, const T* boxes2, int64_t count, T eps,
                          T* gradient1, T* gradient2) {
  with_measure(measure, [&](auto constant) {
    constexpr Measure kMeasure = decltype(constant)::value;
    parallel_for(0, count, grain_of(8), [&](int64_t begin, int64_t end) {
      std::fill(gradient1 + 4 * begin, gradient1 + 4 * end, T(0));
      std::fill(gradient2 + 4 * begin, gradient2 + 4 * end, T(0));
      for (int64_t i = begin; i < end; ++i) {
        add_derivatives<kMeasure, T>(corners_at(boxes1 + 4 * i), corners_at(boxes2 + 4 * i), eps, gradient[i],
                                     gradient1 + 4 * i, gradient2 + 4 * i);
      }
    });
  });
}

// Arguments as the kernels take them: dense, half precision in float32, where areas don't overflow.
struct Operands {
  Tensor boxes1, boxes2;
  ScalarType type;
  Measure measure;

  Tensor computed(const Tensor& tensor) const { return converted(tensor, boxes1.scalar_type()); }
  Tensor returned(const Tensor& tensor) const { return converted(tensor, type); }
  Tensor allocated(const std::vector<int64_t>& sizes) const { return torch::stable::new_empty(boxes1, sizes); }
};

Operands checked(const char* op, const Tensor& boxes1, const Tensor& boxes2, int64_t measure, bool paired) {
  for (const Tensor* boxes : {&boxes1, &boxes2}) {
    const char* name = boxes == &boxes1 ? "boxes1" : "boxes2";
    check(boxes->dim() == 2 && boxes->size(1) == 4, op, ": ", name, " must be [N, 4], got ", ShapeOf{*boxes});
    check(is_floating(boxes->scalar_type()), op, ": ", name, " must be floating point, got ", boxes->scalar_type());
  }
  check(boxes1.scalar_type() == boxes2.scalar_type(), op, ": boxes2 must have the type of boxes1, got ",
        boxes2.scalar_type(), " for ", boxes1.scalar_type());
  check(boxes1.is_cuda() == boxes2.is_cuda() && boxes1.get_device_index() == boxes2.get_device_index(), op,
        ": boxes2 must be on the device of boxes1");
  check(!paired || boxes1.size(0) == boxes2.size(0), op, ": boxes2 must be [", boxes1.size(0), ", 4], got ",
        ShapeOf{boxes2});
  check(measure >= 0 && measure < kMeasures, op, ": unknown measure ", measure);
  const ScalarType type = boxes1.scalar_type();
  const ScalarType wide = type == ScalarType::Double ? type : ScalarType::Float;
  return {converted(boxes1, wide), converted(boxes2, wide), type, static_cast<Measure>(measure)};
}

void check_gradient(const char* op, const Tensor& gradient, const Tensor& boxes1, const std::vector<int64_t>& sizes) {
  bool fits = gradient.dim() == static_cast<int64_t>(sizes.size());
  for (size_t d = 0; fits && d < sizes.size(); ++d) fits = gradient.size(d) == sizes[d];
  check(fits, op, ": grad does not fit the boxes, got ", ShapeOf{gradient});
  check(gradient.scalar_type() == boxes1.scalar_type(), op, ": grad must have the type of the boxes, got ",
        gradient.scalar_type());
  check(gradient.is_cuda() == boxes1.is_cuda() && gradient.get_device_index() == boxes1.get_device_index(), op,
        ": grad must be on the device of the boxes");
}

Tensor box_overlaps_cpu(const Tensor& boxes1, const Tensor& boxes2, int64_t measure) {
  const Operands with = checked("box_iou", boxes1, boxes2, measure, false);
  Tensor overlaps = with.allocated({boxes1.size(0), boxes2.size(0)});
  prefer_huge_pages(overlaps);
  THO_DISPATCH_V2(overlaps.scalar_type(), "box_iou", AT_WRAP([&] {
                    measure_pairs(with.measure, with.boxes1.const_data_ptr<scalar_t>(), boxes1.size(0),
                                  with.boxes2.const_data_ptr<scalar_t>(), boxes2.size(0),
                                  overlaps.mutable_data_ptr<scalar_t>());
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return with.returned(overlaps);
}

std::tuple<Tensor, Tensor> box_overlaps_backward_cpu(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2,
                                                     int64_t measure) {
  const Operands with = checked("box_iou_backward", boxes1, boxes2, measure, false);
  check_gradient("box_iou_backward", grad, boxes1, {boxes1.size(0), boxes2.size(0)});
  const Tensor gradient = with.computed(grad);
  Tensor gradient1 = with.allocated({boxes1.size(0), 4}), gradient2 = with.allocated({boxes2.size(0), 4});
  THO_DISPATCH_V2(gradient.scalar_type(), "box_iou", AT_WRAP([&] {
                    differentiate_pairs(with.measure, gradient.const_data_ptr<scalar_t>(),
                                        with.boxes1.const_data_ptr<scalar_t>(), boxes1.size(0),
                                        with.boxes2.const_data_ptr<scalar_t>(), boxes2.size(0),
                                        gradient1.mutable_data_ptr<scalar_t>(), gradient2.mutable_data_ptr<scalar_t>());
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {with.returned(gradient1), with.returned(gradient2)};
}

Tensor paired_box_overlaps_cpu(const Tensor& boxes1, const Tensor& boxes2, int64_t measure, double eps) {
  const Operands with = checked("paired_box_iou", boxes1, boxes2, measure, true);
  Tensor overlaps = with.allocated({boxes1.size(0)});
  THO_DISPATCH_V2(overlaps.scalar_type(), "box_iou", AT_WRAP([&] {
                    measure_paired(with.measure, with.boxes1.const_data_ptr<scalar_t>(),
                                   with.boxes2.const_data_ptr<scalar_t>(), boxes1.size(0), static_cast<scalar_t>(eps),
                                   overlaps.mutable_data_ptr<scalar_t>());
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return with.returned(overlaps);
}

std::tuple<Tensor, Tensor> paired_box_overlaps_backward_cpu(const Tensor& grad, const Tensor& boxes1,
                                                            const Tensor& boxes2, int64_t measure, double eps) {
  const Operands with = checked("paired_box_iou_backward", boxes1, boxes2, measure, true);
  check_gradient("paired_box_iou_backward", grad, boxes1, {boxes1.size(0)});
  const Tensor gradient = with.computed(grad);
  Tensor gradient1 = with.allocated({boxes1.size(0), 4}), gradient2 = with.allocated({boxes1.size(0), 4});
  THO_DISPATCH_V2(gradient.scalar_type(), "box_iou", AT_WRAP([&] {
                    differentiate_paired(
                        with.measure, gradient.const_data_ptr<scalar_t>(), with.boxes1.const_data_ptr<scalar_t>(),
                        with.boxes2.const_data_ptr<scalar_t>(), boxes1.size(0), static_cast<scalar_t>(eps),
                        gradient1.mutable_data_ptr<scalar_t>(), gradient2.mutable_data_ptr<scalar_t>());
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {with.returned(gradient1), with.returned(gradient2)};
}

#ifdef MRCNN_CUDA
Tensor box_overlaps_cuda(const Tensor& boxes1, const Tensor& boxes2, int64_t measure) {
  const torch::stable::accelerator::DeviceGuard guard(boxes1.get_device_index());
  const Operands with = checked("box_iou", boxes1, boxes2, measure, false);
  Tensor overlaps = with.allocated({boxes1.size(0), boxes2.size(0)});
  if (overlaps.numel() == 0) return with.returned(overlaps);
  THO_DISPATCH_V2(overlaps.scalar_type(), "box_iou", AT_WRAP([&] {
                    check_launch("box_iou", launch_box_overlaps<scalar_t>(
                                                with.measure, with.boxes1.const_data_ptr<scalar_t>(), boxes1.size(0),
                                                with.boxes2.const_data_ptr<scalar_t>(), boxes2.size(0),
                                                overlaps.mutable_data_ptr<scalar_t>(), current_stream(overlaps)));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return with.returned(overlaps);
}

std::tuple<Tensor, Tensor> box_overlaps_backward_cuda(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2,
                                                      int64_t measure) {
  const torch::stable::accelerator::DeviceGuard guard(boxes1.get_device_index());
  const Operands with = checked("box_iou_backward", boxes1, boxes2, measure, false);
  check_gradient("box_iou_backward", grad, boxes1, {boxes1.size(0), boxes2.size(0)});
  const Tensor gradient = with.computed(grad);
  Tensor gradient1 = with.allocated({boxes1.size(0), 4}), gradient2 = with.allocated({boxes2.size(0), 4});
  THO_DISPATCH_V2(gradient.scalar_type(), "box_iou", AT_WRAP([&] {
                    check_launch(
                        "box_iou_backward",
                        launch_box_overlaps_backward<scalar_t>(
                            with.measure, gradient.const_data_ptr<scalar_t>(), with.boxes1.const_data_ptr<scalar_t>(),
                            boxes1.size(0), with.boxes2.const_data_ptr<scalar_t>(), boxes2.size(0),
                            gradient1.mutable_data_ptr<scalar_t>(), gradient2.mutable_data_ptr<scalar_t>(),
                            current_stream(gradient)));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {with.returned(gradient1), with.returned(gradient2)};
}

Tensor paired_box_overlaps_cuda(const Tensor& boxes1, const Tensor& boxes2, int64_t measure, double eps) {
  const torch::stable::accelerator::DeviceGuard guard(boxes1.get_device_index());
  const Operands with = checked("paired_box_iou", boxes1, boxes2, measure, true);
  Tensor overlaps = with.allocated({boxes1.size(0)});
  if (overlaps.numel() == 0) return with.returned(overlaps);
  THO_DISPATCH_V2(overlaps.scalar_type(), "box_iou", AT_WRAP([&] {
                    check_launch("paired_box_iou",
                                 launch_paired_box_overlaps<scalar_t>(
                                     with.measure, with.boxes1.const_data_ptr<scalar_t>(),
                                     with.boxes2.const_data_ptr<scalar_t>(), boxes1.size(0), static_cast<scalar_t>(eps),
                                     overlaps.mutable_data_ptr<scalar_t>(), current_stream(overlaps)));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return with.returned(overlaps);
}

std::tuple<Tensor, Tensor> paired_box_overlaps_backward_cuda(const Tensor& grad, const Tensor& boxes1,
                                                             const Tensor& boxes2, int64_t measure, double eps) {
  const torch::stable::accelerator::DeviceGuard guard(boxes1.get_device_index());
  const Operands with = checked("paired_box_iou_backward", boxes1, boxes2, measure, true);
  check_gradient("paired_box_iou_backward", grad, boxes1, {boxes1.size(0)});
  const Tensor gradient = with.computed(grad);
  Tensor gradient1 = with.allocated({boxes1.size(0), 4}), gradient2 = with.allocated({boxes1.size(0), 4});
  if (boxes1.size(0) == 0) return {with.returned(gradient1), with.returned(gradient2)};
  THO_DISPATCH_V2(gradient.scalar_type(), "box_iou", AT_WRAP([&] {
                    check_launch("paired_box_iou_backward",
                                 launch_paired_box_overlaps_backward<scalar_t>(
                                     with.measure, gradient.const_data_ptr<scalar_t>(),
                                     with.boxes1.const_data_ptr<scalar_t>(), with.boxes2.const_data_ptr<scalar_t>(),
                                     boxes1.size(0), static_cast<scalar_t>(eps), gradient1.mutable_data_ptr<scalar_t>(),
                                     gradient2.mutable_data_ptr<scalar_t>(), current_stream(gradient)));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {with.returned(gradient1), with.returned(gradient2)};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def("box_overlaps(Tensor boxes1, Tensor boxes2, int measure) -> Tensor");
  m.def("box_overlaps_backward(Tensor grad, Tensor boxes1, Tensor boxes2, int measure) -> (Tensor, Tensor)");
  m.def("paired_box_overlaps(Tensor boxes1, Tensor boxes2, int measure, float eps) -> Tensor");
  m.def(
      "paired_box_overlaps_backward(Tensor grad, Tensor boxes1, Tensor boxes2, int measure, float eps) -> "
      "(Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("box_overlaps", TORCH_BOX(&box_overlaps_cpu));
  m.impl("box_overlaps_backward", TORCH_BOX(&box_overlaps_backward_cpu));
  m.impl("paired_box_overlaps", TORCH_BOX(&paired_box_overlaps_cpu));
  m.impl("paired_box_overlaps_backward", TORCH_BOX(&paired_box_overlaps_backward_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("box_overlaps", TORCH_BOX(&box_overlaps_cuda));
  m.impl("box_overlaps_backward", TORCH_BOX(&box_overlaps_backward_cuda));
  m.impl("paired_box_overlaps", TORCH_BOX(&paired_box_overlaps_cuda));
  m.impl("paired_box_overlaps_backward", TORCH_BOX(&paired_box_overlaps_backward_cuda));
}
#endif

}  // namespace mrcnn
