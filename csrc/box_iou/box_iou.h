#pragma once
// Shared by box_iou.cpp and box_iou_cuda.cu, so that the CPU and CUDA kernels can't drift apart.
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../portable.h"

namespace mrcnn {

// What is measured of two boxes a and b. The order of the operations is torchvision's, so that the values are, too.
enum class Measure { kIou, kGeneralizedIou, kCoverage, kGeneralizedIouLoss };
constexpr int kMeasures = 4;

// Calls `work` with the measure as a type that holds it as a constant.
template <typename Work>
auto with_measure(Measure measure, const Work& work) {
  switch (measure) {
    case Measure::kIou:
      return work(std::integral_constant<Measure, Measure::kIou>());
    case Measure::kGeneralizedIou:
      return work(std::integral_constant<Measure, Measure::kGeneralizedIou>());
    case Measure::kCoverage:
      return work(std::integral_constant<Measure, Measure::kCoverage>());
    default:
      return work(std::integral_constant<Measure, Measure::kGeneralizedIouLoss>());
  }
}

// A NaN that these pass over is in the box's area, and by that in the measure.
template <typename T>
HOST_DEVICE T lower(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
HOST_DEVICE T higher(T a, T b) {
  return a < b ? b : a;
}
template <typename T>
HOST_DEVICE T not_negative(T a) {
  return a > T(0) ? a : T(0);
}

// The boxes are (x1, y1, x2, y2), one value each so that a loop over boxes can keep them in vectors.
template <typename T>
struct Corners {
  T x1, y1, x2, y2;
};

template <typename T>
HOST_DEVICE Corners<T> corners_at(const T* box) {
  return {box[0], box[1], box[2], box[3]};
}

template <typename T>
HOST_DEVICE T area_of(const Corners<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// Makes a quotient 0 where there is nothing to divide by. Choosing the divisor, not the quotient, leaves a division
// without a condition, which the compiler can do for several boxes at a time.
template <typename T>
HOST_DEVICE T divisor_of(T area) {
  return area <= T(0) ? static_cast<T>(INFINITY) : area;
}

// 0 where torchvision divides by zero: an overlap of boxes without area, a part of no enclosing area.
template <Measure kMeasure, typename T>
HOST_DEVICE T measured(const Corners<T>& a, const Corners<T>& b, T eps) {
  const T area_a = area_of(a), area_b = area_of(b);
  const T width = not_negative(lower(a.x2, b.x2) - higher(a.x1, b.x1));
  const T height = not_negative(lower(a.y2, b.y2) - higher(a.y1, b.y1));
  const T shared = width * height;
  if (kMeasure == Measure::kCoverage) {
    const T covered = shared / divisor_of(area_a);
    return area_b == area_b ? covered : area_b;  // the area of b is in no term, so that a NaN in it would not show
  }
  const T joined = area_a + area_b - shared;
  if (kMeasure == Measure::kIou) return shared / divisor_of(joined);
  const T around_x = higher(a.x2, b.x2) - lower(a.x1, b.x1), around_y = higher(a.y2, b.y2) - lower(a.y1, b.y1);
  if (kMeasure == Measure::kGeneralizedIouLoss) {
    const T around = around_x * around_y;
    return T(1) - (shared / (joined + eps) - (around - joined) / (around + eps));
  }
  const T around = not_negative(around_x) * not_negative(around_y);
  return shared / divisor_of(joined) - (around - joined) / divisor_of(around);
}

// The share of a's coordinate in the derivative of the greater of two: equals share it, as in PyTorch.
template <typename T>
HOST_DEVICE T share_of(T a, T b) {
  return a > b ? T(1) : a == b ? T(0.5) : T(0);
}

// Adds `gradient` times the derivatives of the measure by the corners of a and of b; either may be null.
template <Measure kMeasure, typename T>
HOST_DEVICE void add_derivatives(const Corners<T>& a, const Corners<T>& b, T eps, T gradient, T* to_a, T* to_b) {
  constexpr bool kLoss = kMeasure == Measure::kGeneralizedIouLoss;
  const T area_a = area_of(a), area_b = area_of(b);
  const T raw_width = lower(a.x2, b.x2) - higher(a.x1, b.x1), raw_height = lower(a.y2, b.y2) - higher(a.y1, b.y1);
  // Boxes that only touch count as apart, as in PyTorch.
  const bool intersects = raw_width > T(0) && raw_height > T(0);
  const bool by_intersection_only = kMeasure == Measure::kIou || kMeasure == Measure::kCoverage;
  if (!intersects && by_intersection_only && area_a + area_b == area_a + area_b) return;
  const T width = not_negative(raw_width), height = not_negative(raw_height), shared = width * height;
  const T joined = area_a + area_b - shared;
  const T around_x = higher(a.x2, b.x2) - lower(a.x1, b.x1), around_y = higher(a.y2, b.y2) - lower(a.y1, b.y1);

  // Derivatives by the intersection, both areas, and the enclosing area.
  T by_shared = 0, by_area_a = 0, by_area_b = 0, by_around = 0;
  if (kMeasure == Measure::kCoverage) {
    if (area_a <= T(0)) return;
    by_shared = T(1) / area_a;
    by_area_a = -shared / area_a / area_a;
  } else {
    T by_joined = 0;
    if (kLoss) {
      const T around = around_x * around_y;
      by_joined = shared / (joined + eps) / (joined + eps) - T(1) / (around + eps);
      by_shared = T(-1) / (joined + eps);
      by_around = (T(1) - (around - joined) / (around + eps)) / (around + eps);
    } else {
      if (!(joined <= T(0))) {
        by_shared = T(1) / joined;
        by_joined = -shared / joined / joined;
      }
      const T around = not_negative(around_x) * not_negative(around_y);
      if (kMeasure == Measure::kGeneralizedIou && !(around <= T(0))) {
        by_joined += T(1) / around;
        by_around = -joined / around / around;
      }
    }
    by_area_a = by_area_b = by_joined;
    by_shared -= by_joined;
  }

  const T by_width = intersects ? gradient * by_shared * height : T(0);
  const T by_height = intersects ? gradient * by_shared * width : T(0);
  const T by_around_x = gradient * (kLoss             ? by_around * around_y
                                    : around_x > T(0) ? by_around * not_negative(around_y)
                                                      : T(0));
  const T by_around_y = gradient * (kLoss             ? by_around * around_x
                                    : around_y > T(0) ? by_around * not_negative(around_x)
                                                      : T(0));
  const auto add = [&](const Corners<T>& own, const Corners<T>& other, T by_area, T* to) {
    const T by_own_width = gradient * by_area * (own.y2 - own.y1),
            by_own_height = gradient * by_area * (own.x2 - own.x1);
    to[0] += -by_width * share_of(own.x1, other.x1) - by_around_x * share_of(other.x1, own.x1) - by_own_width;
    to[1] += -by_height * share_of(own.y1, other.y1) - by_around_y * share_of(other.y1, own.y1) - by_own_height;
    to[2] += by_width * share_of(other.x2, own.x2) + by_around_x * share_of(own.x2, other.x2) + by_own_width;
    to[3] += by_height * share_of(other.y2, own.y2) + by_around_y * share_of(own.y2, other.y2) + by_own_height;
  };
  if (to_a != nullptr) add(a, b, by_area_a, to_a);
  if (to_b != nullptr) add(b, a, by_area_b, to_b);
}

// Launch the CUDA kernels; return nullptr or an error message. Pairwise: [N, M] of N and M boxes. Paired: [N].
template <typename T>
const char* launch_box_overlaps(Measure measure, const T* boxes1, int64_t rows, const T* boxes2, int64_t columns,
                                T* overlaps, void* stream);
template <typename T>
const char* launch_box_overlaps_backward(Measure measure, const T* gradient, const T* boxes1, int64_t rows,
                                         const T* boxes2, int64_t columns, T* gradient1, T* gradient2, void* stream);
template <typename T>
const char* launch_paired_box_overlaps(Measure measure, const T* boxes1, const T* boxes2, int64_t count, T eps,
                                       T* overlaps, void* stream);
template <typename T>
const char* launch_paired_box_overlaps_backward(Measure measure, const T* gradient, const T* boxes1, const T* boxes2,
                                                int64_t count, T eps, T* gradient1, T* gradient2, void* stream);

}  // namespace mrcnn
