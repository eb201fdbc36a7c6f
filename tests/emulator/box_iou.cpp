// Overlaps of boxes, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/box_iou/box_iou.h"

namespace {

// `gradient` given: the backward pass. `columns` of -1: box by box.
template <typename T>
const char* overlaps(int64_t measure, const T* gradient, const T* boxes1, int64_t rows, const T* boxes2,
                     int64_t columns, double eps, T* out1, T* out2) {
  const auto of = static_cast<mrcnn::Measure>(measure);
  return emulated::guarded([&] {
    if (columns < 0) {
      return gradient == nullptr
                 ? mrcnn::launch_paired_box_overlaps<T>(of, boxes1, boxes2, rows, static_cast<T>(eps), out1, nullptr)
                 : mrcnn::launch_paired_box_overlaps_backward<T>(of, gradient, boxes1, boxes2, rows,
                                                                 static_cast<T>(eps), out1, out2, nullptr);
    }
    return gradient == nullptr ? mrcnn::launch_box_overlaps<T>(of, boxes1, rows, boxes2, columns, out1, nullptr)
                               : mrcnn::launch_box_overlaps_backward<T>(of, gradient, boxes1, rows, boxes2, columns,
                                                                        out1, out2, nullptr);
  });
}

}  // namespace

extern "C" {

const char* box_overlaps_float(int64_t measure, const float* gradient, const float* boxes1, int64_t rows,
                               const float* boxes2, int64_t columns, double eps, float* out1, float* out2) {
  return overlaps(measure, gradient, boxes1, rows, boxes2, columns, eps, out1, out2);
}

const char* box_overlaps_double(int64_t measure, const double* gradient, const double* boxes1, int64_t rows,
                                const double* boxes2, int64_t columns, double eps, double* out1, double* out2) {
  return overlaps(measure, gradient, boxes1, rows, boxes2, columns, eps, out1, out2);
}

}  // extern "C"

namespace {

void run() {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> place(0, 50), side(1, 40);
  const auto some_boxes = [&](int64_t n) {
    std::vector<float> boxes;
    for (int64_t i = 0; i < n; ++i) {
      const float x = place(random), y = place(random);
      boxes.insert(boxes.end(), {x, y, x + side(random), y + side(random)});
    }
    boxes.shrink_to_fit();
    return boxes;
  };
  for (const int64_t rows : {1, 33, 70}) {
    for (const int64_t columns : {int64_t{-1}, int64_t{1}, int64_t{40}}) {
      const int64_t others = columns < 0 ? rows : columns, pairs = columns < 0 ? rows : rows * columns;
      const std::vector<float> boxes1 = some_boxes(rows), boxes2 = some_boxes(others), gradient(pairs, 1.0f);
      for (int64_t measure = 0; measure < mrcnn::kMeasures; ++measure) {
        std::vector<float> values(pairs), gradient1(4 * rows), gradient2(4 * others);
        emulated::expect("box_overlaps", box_overlaps_float(measure, nullptr, boxes1.data(), rows, boxes2.data(),
                                                            columns, 1e-7, values.data(), nullptr));
        emulated::expect("box_overlaps_backward",
                         box_overlaps_float(measure, gradient.data(), boxes1.data(), rows, boxes2.data(), columns, 1e-7,
                                            gradient1.data(), gradient2.data()));
      }
    }
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
