// Non-maximum suppression: boxes come sorted by falling score or with their scores, out comes which of them stay.
#include "nms.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "../common.h"
#include "grid.h"
#include "kept.h"
#include "order.h"

namespace mrcnn {
namespace {

// A threshold below zero is exceeded by boxes that do not even touch.
template <typename T>
void suppress_by_definition(const T* boxes, const BoxIndex* order, int64_t n, T threshold, bool* keep) {
  std::vector<const T*> kept;
  for (int64_t i = 0; i < n; ++i) {
    const T* box = boxes + 4 * static_cast<size_t>(order[i]);
    const bool stays = std::none_of(kept.begin(), kept.end(), [&](const T* k) { return overlaps(k, box, threshold); });
    keep[order[i]] = stays;
    if (stays) kept.push_back(box);
  }
}

// So many kept boxes are compared with all of them in the time that it takes to find the near ones in a grid, which
// sees fewer boxes the higher the threshold is.
template <typename T>
int64_t worth_a_grid(T threshold) {
  return static_cast<int64_t>(T(200) / std::max(threshold, T(1e-6)));
}

// Suppression among the boxes order[0..n) of one group, best first. Writes keep[order[i]] for each of them. Boxes are
// compared with all that are kept while these are few, then with the ones near them.
template <typename T>
void suppress(const T* boxes, const BoxIndex* order, int64_t n, T threshold, bool* keep) {
  if (threshold < 0) return suppress_by_definition(boxes, order, n, threshold, keep);
  const auto suppresses = chosen_scans<T>().run;
  const auto box_at = [&](int64_t i) { return boxes + 4 * static_cast<size_t>(order[i]); };
  const auto area_of = [](const T* box) { return (box[2] - box[0]) * (box[3] - box[1]); };
  const int64_t few = worth_a_grid(threshold);
  const std::unique_ptr<Block<T>[]> kept(new Block<T>[n / 8 + 1]);
  int64_t count = 0, i = 0;
  for (; i < n; ++i) {
    if (count == few && n - i > n / 8) break;
    const T* box = box_at(i);
    const bool stays = !suppresses(kept.get(), (count + 7) / 8, box, threshold);
    keep[order[i]] = stays;
    if (!stays) continue;
    if (count % 8 == 0) kept[count / 8].clear();
    kept[count / 8].put(count % 8, box);
    ++count;
  }
  if (i == n) return;

  BoxGrid<T> grid(boxes, order, n, threshold);
  for (int64_t k = 0; k < i; ++k) {
    const T *box = box_at(k), area = area_of(box);
    if (keep[order[k]] && !BoxGrid<T>::is_inert(box, area)) grid.keep(box, area);
  }
  for (; i < n; ++i) {
    const T *box = box_at(i), area = area_of(box);
    const bool inert = BoxGrid<T>::is_inert(box, area), stays = inert || !grid.suppresses(box, area);
    keep[order[i]] = stays;
    if (stays && !inert) grid.keep(box, area);
  }
}

void check_arguments(const Tensor& boxes, const std::optional<Tensor>& groups, double threshold) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, "nms: boxes must be [N, 4], got ", ShapeOf{boxes});
  check(is_floating(boxes.scalar_type()), "nms: boxes must be floating point, got ", boxes.scalar_type());
  check(threshold == threshold, "nms: iou_threshold must be a number, got NaN");
  check(boxes.size(0) < kMaximumBoxes, "nms: at most ", kMaximumBoxes - 1, " boxes, got ", boxes.size(0));
  if (!groups) return;
  check(groups->dim() == 1 && groups->size(0) == boxes.size(0), "nms: groups must be [", boxes.size(0), "], got ",
        ShapeOf{*groups});
  check(groups->scalar_type() == ScalarType::Long, "nms: groups must be int64, got ", groups->scalar_type());
  check(groups->is_cuda() == boxes.is_cuda() && groups->get_device_index() == boxes.get_device_index(),
        "nms: groups must be on the device of boxes");
}

void check_scores(const Tensor& boxes, const Tensor& scores) {
  check(scores.dim() == 1 && scores.size(0) == boxes.size(0), "nms: scores must be [", boxes.size(0), "], got ",
        ShapeOf{scores});
  check(is_floating(scores.scalar_type()), "nms: scores must be floating point, got ", scores.scalar_type());
  check(scores.is_cpu(), "nms: scores must be on the device of boxes");
}

// Half-precision boxes are compared in float32: their areas would overflow and their overlaps would be coarse.
Tensor comparable(const Tensor& boxes) {
  return converted(boxes, boxes.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

// Writes for each box whether it stays; `order` holds all boxes, best first.
void decide(const Tensor& boxes, std::vector<BoxIndex> order, const std::optional<Tensor>& groups, double iou_threshold,
            bool* keep) {
  const Tensor dense = comparable(boxes);
  const std::optional<Tensor> ids = groups ? std::make_optional(torch::stable::contiguous(*groups)) : std::nullopt;
  const Grouped members = grouped(std::move(order), ids ? ids->const_data_ptr<int64_t>() : nullptr);
  THO_DISPATCH_V2(dense.scalar_type(), "nms", AT_WRAP([&] {
                    const scalar_t* box = dense.const_data_ptr<scalar_t>();
                    const scalar_t threshold = threshold_in<scalar_t>(iou_threshold);
                    for_each_group(members, [&](int64_t g) {
                      const int64_t start = members.starts[g];
                      suppress(box, members.order.data() + start, members.starts[g + 1] - start, threshold, keep);
                    });
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
}

Tensor nms_cpu(const Tensor& boxes, const std::optional<Tensor>& groups, double iou_threshold) {
  check_arguments(boxes, groups, iou_threshold);
  const int64_t n = boxes.size(0);
  Tensor keep = torch::stable::new_empty(boxes, {n}, ScalarType::Bool);
  decide(boxes, as_given(n), groups, iou_threshold, keep.mutable_data_ptr<bool>());
  return keep;
}

// In one call what sorting, gathering and picking around nms_cpu would be: for a thousand boxes those take longer.
Tensor nms_indices_cpu(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups,
                       double iou_threshold) {
  check_arguments(boxes, groups, iou_threshold);
  check_scores(boxes, scores);
  const int64_t n = boxes.size(0);
  const Tensor comparable_scores = comparable(scores);
  const std::vector<BoxIndex> order = scores.scalar_type() == ScalarType::Double
                                          ? by_falling_score(comparable_scores.const_data_ptr<double>(), n)
                                          : by_falling_score(comparable_scores.const_data_ptr<float>(), n);
  const std::unique_ptr<bool[]> keep(new bool[n]);
  decide(boxes, order, groups, iou_threshold, keep.get());
  const int64_t count = std::count(keep.get(), keep.get() + n, true);
  Tensor indices = torch::stable::new_empty(boxes, {count}, ScalarType::Long);
  int64_t* out = indices.mutable_data_ptr<int64_t>();
  for (const BoxIndex box : order) {
    if (keep[box]) *out++ = box;
  }
  return indices;
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
  Tensor scratch = torch::stable::new_empty(dense, {nms_scratch_words(n)}, ScalarType::Long);
  auto* words = reinterpret_cast<uint64_t*>(scratch.mutable_data_ptr<int64_t>());
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
  m.def("nms_indices(Tensor boxes, Tensor scores, Tensor? groups, float iou_threshold) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
  m.impl("nms_indices", TORCH_BOX(&nms_indices_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("nms", TORCH_BOX(&nms_cuda));
}
#endif

}  // namespace mrcnn
