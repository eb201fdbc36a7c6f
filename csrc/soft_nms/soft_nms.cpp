// Soft-NMS: boxes that overlap a better one lose score instead of going.
#include "soft_nms.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "../common.h"
#include "../nms/kept.h"
#include "../nms/order.h"

namespace mrcnn {
namespace {

// What boxes [first, count) of those picked, in their order, leave of a box's score.
template <typename T>
T decayed_by(const Block<T>* picked, int64_t first, int64_t count, const T* box, T score, const SoftNms<T>& rule) {
  for (int64_t k = first; k < count && score > T(0); ++k) {
    const Block<T>& block = picked[k / 8];
    const T other[4] = {block.x1[k % 8], block.y1[k % 8], block.x2[k % 8], block.y2[k % 8]};
    score = decayed(score, overlap(other, box), rule);
  }
  return score;
}

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

// The overlaps of eight boxes at a time; the few that are not zero decay the score one by one.
inline float decayed_by(const Block<float>* picked, int64_t first, int64_t count, const float* box, float score,
                        const SoftNms<float>& rule) {
  const mrcnn::avx2::Candidate candidate(box, 0.0f);
  const __m256 zero = _mm256_setzero_ps();
  alignas(32) float overlaps[8];
  for (int64_t k = first / 8; k < (count + 7) / 8; ++k) {
    const Block<float>& block = picked[k];
    const __m256 right = _mm256_min_ps(candidate.x2, _mm256_load_ps(block.x2));
    const __m256 left = _mm256_max_ps(candidate.x1, _mm256_load_ps(block.x1));
    const __m256 bottom = _mm256_min_ps(candidate.y2, _mm256_load_ps(block.y2));
    const __m256 top = _mm256_max_ps(candidate.y1, _mm256_load_ps(block.y1));
    const __m256 width = _mm256_max_ps(_mm256_sub_ps(right, left), zero);
    const __m256 height = _mm256_max_ps(_mm256_sub_ps(bottom, top), zero);
    const __m256 intersection = _mm256_mul_ps(width, height);
    auto touching = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(intersection, zero, _CMP_GT_OQ)));
    if (k == first / 8) touching &= ~0u << (first % 8);
    if (touching == 0) continue;
    const __m256 both = _mm256_add_ps(_mm256_load_ps(block.area), candidate.area);
    _mm256_store_ps(overlaps, _mm256_div_ps(intersection, _mm256_sub_ps(both, intersection)));
    for (; touching != 0; touching &= touching - 1) {
      score = decayed(score, overlaps[__builtin_ctz(touching)], rule);
      if (!(score > 0.0f)) return 0.0f;
    }
  }
  return score;
}

#pragma GCC pop_options

}  // namespace avx2
#endif

template <typename T>
auto chosen_decayed_by() {
#ifdef __x86_64__
  if constexpr (std::is_same_v<T, float>) {
    if (has_avx2()) return &avx2::decayed_by;
  }
#endif
  return &decayed_by<T>;
}

// A box that is still to be picked. Its score has suffered from the first `seen` picks and can only fall.
template <typename T>
struct Waiting {
  T score;
  BoxIndex box;
  BoxIndex seen;

  // For a heap with the best on top; of equal scores the earlier box is better.
  bool operator<(const Waiting& other) const { return score != other.score ? score < other.score : box > other.box; }
};

// The boxes order[0..n) of one group, which is rising. Whoever is on top of the heap catches up with the picks it has
// not seen; it is picked if it is then still the best, since all others' scores can only be too high. So a box that
// never comes near the top is never looked at, and picks are compared eight at a time. The scores are multiplied in the
// order of the picks, as they are where all boxes suffer from a pick at once.
template <typename T>
void pick_boxes(const T* boxes, const T* scores, const BoxIndex* order, int64_t n, const SoftNms<T>& rule, T* result) {
  const auto decay = chosen_decayed_by<T>();
  std::vector<Waiting<T>> heap;
  heap.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    const BoxIndex box = order[i];
    result[box] = T(0);
    const T score = accepted(scores[box], rule);
    if (score > T(0)) heap.push_back({score, box, 0});
  }
  std::make_heap(heap.begin(), heap.end());
  const std::unique_ptr<Block<T>[]> picked(new Block<T>[heap.size() / 8 + 1]);
  int64_t count = 0;
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    Waiting<T> top = heap.back();
    heap.pop_back();
    const T* box = boxes + 4 * static_cast<size_t>(top.box);
    top.score = decay(picked.get(), top.seen, count, box, top.score, rule);
    top.seen = static_cast<BoxIndex>(count);
    if (!(top.score > T(0))) continue;
    if (!heap.empty() && top < heap.front()) {
      heap.push_back(top);
      std::push_heap(heap.begin(), heap.end());
      continue;
    }
    result[top.box] = top.score;
    if (count % 8 == 0) picked[count / 8].clear();
    picked[count / 8].put(count % 8, box);
    ++count;
  }
}

void check_arguments(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups, int64_t method,
                     double iou_threshold, double sigma, double score_threshold) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, "soft_nms: boxes must be [N, 4], got ", ShapeOf{boxes});
  check(is_floating(boxes.scalar_type()), "soft_nms: boxes must be floating point, got ", boxes.scalar_type());
  check(boxes.size(0) < kMaximumBoxes, "soft_nms: at most ", kMaximumBoxes - 1, " boxes, got ", boxes.size(0));
  check(scores.dim() == 1 && scores.size(0) == boxes.size(0), "soft_nms: scores must be [", boxes.size(0), "], got ",
        ShapeOf{scores});
  check(is_floating(scores.scalar_type()), "soft_nms: scores must be floating point, got ", scores.scalar_type());
  check(scores.is_cuda() == boxes.is_cuda() && scores.get_device_index() == boxes.get_device_index(),
        "soft_nms: scores must be on the device of boxes");
  check(method >= 0 && method <= 2, "soft_nms: method must be 0 (hard), 1 (linear) or 2 (gaussian), got ", method);
  check(iou_threshold >= 0, "soft_nms: iou_threshold must not be negative, got ", iou_threshold);
  check(sigma > 0, "soft_nms: sigma must be positive, got ", sigma);
  check(score_threshold >= 0, "soft_nms: score_threshold must not be negative, got ", score_threshold);
  if (!groups) return;
  check(groups->dim() == 1 && groups->size(0) == boxes.size(0), "soft_nms: groups must be [", boxes.size(0), "], got ",
        ShapeOf{*groups});
  check(groups->scalar_type() == ScalarType::Long, "soft_nms: groups must be int64, got ", groups->scalar_type());
  check(groups->is_cuda() == boxes.is_cuda() && groups->get_device_index() == boxes.get_device_index(),
        "soft_nms: groups must be on the device of boxes");
}

// Half precision is computed in float32; if boxes or scores are float64, both are.
ScalarType computed(const Tensor& boxes, const Tensor& scores) {
  const bool wide = boxes.scalar_type() == ScalarType::Double || scores.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

template <typename T>
SoftNms<T> rule_of(int64_t method, double iou_threshold, double sigma, double score_threshold) {
  return {static_cast<Decay>(method), threshold_in<T>(iou_threshold), static_cast<T>(sigma),
          static_cast<T>(score_threshold)};
}

Tensor soft_nms_cpu(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups, int64_t method,
                    double iou_threshold, double sigma, double score_threshold) {
  check_arguments(boxes, scores, groups, method, iou_threshold, sigma, score_threshold);
  const ScalarType type = computed(boxes, scores);
  const Tensor corners = converted(boxes, type), given = converted(scores, type);
  const std::optional<Tensor> ids = groups ? std::make_optional(torch::stable::contiguous(*groups)) : std::nullopt;
  Tensor result = torch::stable::new_empty(given, {given.size(0)});
  const Grouped members = grouped(as_given(boxes.size(0)), ids ? ids->const_data_ptr<int64_t>() : nullptr);
  THO_DISPATCH_V2(type, "soft_nms", AT_WRAP([&] {
                    const auto rule = rule_of<scalar_t>(method, iou_threshold, sigma, score_threshold);
                    const scalar_t* box = corners.const_data_ptr<scalar_t>();
                    const scalar_t* score = given.const_data_ptr<scalar_t>();
                    scalar_t* out = result.mutable_data_ptr<scalar_t>();
                    for_each_group(members, [&](int64_t g) {
                      const int64_t start = members.starts[g];
                      pick_boxes(box, score, members.order.data() + start, members.starts[g + 1] - start, rule, out);
                    });
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return converted(result, scores.scalar_type());
}

#ifdef MRCNN_CUDA
// Groups in rising order and where they were; boxes of one group keep their order.
std::pair<Tensor, Tensor> sorted(const Tensor& groups) {
  StableIValue stack[] = {torch::stable::detail::from(groups), torch::stable::detail::from(std::optional<bool>(true)),
                          torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

Tensor soft_nms_cuda(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups, int64_t method,
                     double iou_threshold, double sigma, double score_threshold) {
  check_arguments(boxes, scores, groups, method, iou_threshold, sigma, score_threshold);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const ScalarType type = computed(boxes, scores);
  const Tensor corners = converted(boxes, type), given = converted(scores, type);
  const int64_t n = boxes.size(0);
  Tensor result = torch::stable::new_empty(given, {n});
  if (n == 0) return converted(result, scores.scalar_type());
  std::optional<std::pair<Tensor, Tensor>> members;
  if (groups) members = sorted(*groups);
  const int64_t* ids = members ? members->first.const_data_ptr<int64_t>() : nullptr;
  const int64_t* order = members ? members->second.const_data_ptr<int64_t>() : nullptr;
  Tensor live = torch::stable::new_empty(given, {n});
  THO_DISPATCH_V2(type, "soft_nms", AT_WRAP([&] {
                    check_launch("soft_nms",
                                 launch_soft_nms<scalar_t>(
                                     corners.const_data_ptr<scalar_t>(), given.const_data_ptr<scalar_t>(), order, ids,
                                     n, rule_of<scalar_t>(method, iou_threshold, sigma, score_threshold),
                                     live.mutable_data_ptr<scalar_t>(), result.mutable_data_ptr<scalar_t>(),
                                     current_stream(corners)));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return converted(result, scores.scalar_type());
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor? groups, int method, float iou_threshold, float sigma, "
      "float score_threshold) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("soft_nms", TORCH_BOX(&soft_nms_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("soft_nms", TORCH_BOX(&soft_nms_cuda));
}
#endif

}  // namespace mrcnn
