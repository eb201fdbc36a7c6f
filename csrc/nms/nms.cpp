// Non-maximum suppression: boxes come sorted by falling score, out comes which of them stay.
#include "nms.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include "../common.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace mrcnn {
namespace {

// The boxes kept so far in one group, one array per coordinate so that eight are compared at a time. Arrays are padded
// to whole vectors with boxes of NaN, which overlap nothing.
struct Kept {
  std::vector<float> x1, y1, x2, y2, area;
  int64_t count = 0;

  void clear() {
    for (auto* column : {&x1, &y1, &x2, &y2, &area}) column->clear();
    count = 0;
  }

  void add(const float* box) {
    if (count % 8 == 0) {
      const auto grown = static_cast<size_t>(count) + 8;
      for (auto* column : {&x1, &y1, &x2, &y2, &area}) column->resize(grown, std::numeric_limits<float>::quiet_NaN());
    }
    x1[count] = box[0];
    y1[count] = box[1];
    x2[count] = box[2];
    y2[count] = box[3];
    area[count] = (box[2] - box[0]) * (box[3] - box[1]);
    ++count;
  }
};

#ifdef __x86_64__
__attribute__((target("avx2"))) bool suppressed_avx2(const Kept& kept, const float* box, float threshold) {
  const __m256 zero = _mm256_setzero_ps(), limit = _mm256_set1_ps(threshold);
  const __m256 x1 = _mm256_set1_ps(box[0]), y1 = _mm256_set1_ps(box[1]);
  const __m256 x2 = _mm256_set1_ps(box[2]), y2 = _mm256_set1_ps(box[3]);
  const __m256 area = _mm256_set1_ps((box[2] - box[0]) * (box[3] - box[1]));
  for (int64_t k = 0; k < kept.count; k += 8) {
    const __m256 right = _mm256_min_ps(x2, _mm256_loadu_ps(&kept.x2[k]));
    const __m256 left = _mm256_max_ps(x1, _mm256_loadu_ps(&kept.x1[k]));
    const __m256 bottom = _mm256_min_ps(y2, _mm256_loadu_ps(&kept.y2[k]));
    const __m256 top = _mm256_max_ps(y1, _mm256_loadu_ps(&kept.y1[k]));
    // max returns its second operand where the first is NaN
    const __m256 width = _mm256_max_ps(_mm256_sub_ps(right, left), zero);
    const __m256 height = _mm256_max_ps(_mm256_sub_ps(bottom, top), zero);
    const __m256 intersection = _mm256_mul_ps(width, height);
    const __m256 both = _mm256_add_ps(_mm256_loadu_ps(&kept.area[k]), area);
    const __m256 overlap = _mm256_div_ps(intersection, _mm256_sub_ps(both, intersection));
    if (_mm256_movemask_ps(_mm256_cmp_ps(overlap, limit, _CMP_GT_OQ)) != 0) return true;
  }
  return false;
}
#endif

// Suppression among the boxes `order[0..n)` of one group, best first. Writes keep[order[i]] for each of them.
void suppress(const float* boxes, const int64_t* order, int64_t n, float threshold, bool* keep) {
#ifdef __x86_64__
  if (has_avx2()) {
    Kept kept;
    for (int64_t i = 0; i < n; ++i) {
      const float* box = boxes + 4 * order[i];
      keep[order[i]] = !suppressed_avx2(kept, box, threshold);
      if (keep[order[i]]) kept.add(box);
    }
    return;
  }
#endif
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < n; ++i) {
    const float* box = boxes + 4 * order[i];
    keep[order[i]] =
        std::none_of(kept.begin(), kept.end(), [&](int64_t k) { return overlaps(boxes + 4 * k, box, threshold); });
    if (keep[order[i]]) kept.push_back(order[i]);
  }
}

void suppress(const double* boxes, const int64_t* order, int64_t n, double threshold, bool* keep) {
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < n; ++i) {
    const double* box = boxes + 4 * order[i];
    keep[order[i]] =
        std::none_of(kept.begin(), kept.end(), [&](int64_t k) { return overlaps(boxes + 4 * k, box, threshold); });
    if (keep[order[i]]) kept.push_back(order[i]);
  }
}

void check_arguments(const Tensor& boxes, const std::optional<Tensor>& groups, double threshold) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, "nms: boxes must be [N, 4], got ", ShapeOf{boxes});
  check(is_floating(boxes.scalar_type()), "nms: boxes must be floating point, got ", boxes.scalar_type());
  check(threshold == threshold, "nms: iou_threshold must be a number, got NaN");
  if (!groups) return;
  check(groups->dim() == 1 && groups->size(0) == boxes.size(0), "nms: groups must be [", boxes.size(0), "], got ",
        ShapeOf{*groups});
  check(groups->scalar_type() == ScalarType::Long, "nms: groups must be int64, got ", groups->scalar_type());
  check(groups->is_cuda() == boxes.is_cuda() && groups->get_device_index() == boxes.get_device_index(),
        "nms: groups must be on the device of boxes");
}

// Half-precision boxes are compared in float32: their areas would overflow and their overlaps would be coarse.
Tensor comparable(const Tensor& boxes) {
  return converted(boxes, boxes.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

Tensor nms_cpu(const Tensor& boxes, const std::optional<Tensor>& groups, double iou_threshold) {
  check_arguments(boxes, groups, iou_threshold);
  const Tensor dense = comparable(boxes);
  const int64_t n = dense.size(0);
  Tensor keep = torch::stable::new_empty(dense, {n}, ScalarType::Bool);
  bool* kept = keep.mutable_data_ptr<bool>();

  // Indices by group, best first within each; starts[g] is where group g begins.
  std::vector<int64_t> order(n), starts;
  std::iota(order.begin(), order.end(), int64_t{0});
  if (groups) {
    const Tensor ids = torch::stable::contiguous(*groups);
    const int64_t* id = ids.const_data_ptr<int64_t>();
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return id[a] < id[b]; });
    for (int64_t i = 0; i < n; ++i) {
      if (i == 0 || id[order[i]] != id[order[i - 1]]) starts.push_back(i);
    }
  } else if (n > 0) {
    starts.push_back(0);
  }
  const auto count = static_cast<int64_t>(starts.size());
  starts.push_back(n);
  // Few boxes are done before other threads have woken up.
  const int64_t grain = n < 4096 ? std::max<int64_t>(count, 1) : 1;

  THO_DISPATCH_V2(dense.scalar_type(), "nms", AT_WRAP([&] {
                    const scalar_t* box = dense.const_data_ptr<scalar_t>();
                    const scalar_t threshold = threshold_in<scalar_t>(iou_threshold);
                    parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
                      for (int64_t g = begin; g < end; ++g) {
                        suppress(box, order.data() + starts[g], starts[g + 1] - starts[g], threshold, kept);
                      }
                    });
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return keep;
}

#ifdef MRCNN_CUDA
Tensor nms_cuda(const Tensor& boxes, const std::optional<Tensor>& groups, double iou_threshold) {
  check_arguments(boxes, groups, iou_threshold);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const Tensor dense = comparable(boxes);
  const int64_t n = dense.size(0);
  Tensor keep = torch::stable::new_empty(dense, {n}, ScalarType::Bool);
  if (n == 0) return keep;
  const std::optional<Tensor> ids = groups ? std::make_optional(torch::stable::contiguous(*groups)) : std::nullopt;
  const int64_t* id = ids ? ids->const_data_ptr<int64_t>() : nullptr;
  Tensor mask = torch::stable::new_empty(dense, {nms_mask_words(n)}, ScalarType::Long);
  auto* words = reinterpret_cast<uint64_t*>(mask.mutable_data_ptr<int64_t>());
  THO_DISPATCH_V2(dense.scalar_type(), "nms", AT_WRAP([&] {
                    check_launch("nms", launch_nms<scalar_t>(dense.const_data_ptr<scalar_t>(), id, n,
                                                             threshold_in<scalar_t>(iou_threshold), words,
                                                             keep.mutable_data_ptr<bool>(), current_stream(dense)));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return keep;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def("nms(Tensor boxes, Tensor? groups, float iou_threshold) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("nms", TORCH_BOX(&nms_cuda));
}
#endif

}  // namespace mrcnn
