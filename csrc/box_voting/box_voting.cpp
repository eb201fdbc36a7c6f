// Box voting: kept boxes become averages of those that lie on them.
#include "box_voting.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../common.h"
#include "../nms/kept.h"
#include "../nms/order.h"

namespace mrcnn {
namespace {

// Writes the overlaps of `box` with the eight of a block; returns a bit for each that is at least the threshold, which
// is positive.
template <typename T>
unsigned voters(const Block<T>& block, const T* box, T threshold, T* overlaps) {
  unsigned found = 0;
  for (int k = 0; k < 8; ++k) {
    const T other[4] = {block.x1[k], block.y1[k], block.x2[k], block.y2[k]};
    overlaps[k] = overlap(box, other);
    found |= static_cast<unsigned>(overlaps[k] >= threshold) << k;
  }
  return found;
}

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

inline unsigned voters(const Block<float>& block, const float* box, float threshold, float* overlaps) {
  const mrcnn::avx2::Candidate candidate(box, threshold);
  const __m256 zero = _mm256_setzero_ps();
  const __m256 right = _mm256_min_ps(candidate.x2, _mm256_load_ps(block.x2));
  const __m256 left = _mm256_max_ps(candidate.x1, _mm256_load_ps(block.x1));
  const __m256 bottom = _mm256_min_ps(candidate.y2, _mm256_load_ps(block.y2));
  const __m256 top = _mm256_max_ps(candidate.y1, _mm256_load_ps(block.y1));
  const __m256 width = _mm256_max_ps(_mm256_sub_ps(right, left), zero);
  const __m256 height = _mm256_max_ps(_mm256_sub_ps(bottom, top), zero);
  const __m256 intersection = _mm256_mul_ps(width, height);
  if (_mm256_movemask_ps(_mm256_cmp_ps(intersection, zero, _CMP_GT_OQ)) == 0) return 0;
  const __m256 both = _mm256_add_ps(_mm256_load_ps(block.area), candidate.area);
  const __m256 overlap = _mm256_div_ps(intersection, _mm256_sub_ps(both, intersection));
  _mm256_storeu_ps(overlaps, overlap);
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(overlap, candidate.threshold, _CMP_GE_OQ)));
}

#pragma GCC pop_options

}  // namespace avx2
#endif

template <typename T>
auto chosen_voters() {
#ifdef __x86_64__
  if constexpr (std::is_same_v<T, float>) {
    if (has_avx2()) return &avx2::voters;
  }
#endif
  return &voters<T>;
}

// The boxes by group, each group's in blocks of its own.
template <typename T>
struct Voters {
  std::unique_ptr<Block<T>[]> blocks;
  std::vector<int64_t> starts;     // [G + 1] first block of each group
  std::vector<BoxIndex> group_of;  // [N] which group a box is in

  Voters(const T* boxes, int64_t n, const Grouped& members) : starts(1), group_of(n) {
    blocks.reset(new Block<T>[n / 8 + members.count() + 1]);
    for (int64_t g = 0; g < members.count(); ++g) {
      Block<T>* first = &blocks[starts.back()];
      const int64_t start = members.starts[g], count = members.starts[g + 1] - start;
      for (int64_t i = 0; i < count; ++i) {
        if (i % 8 == 0) first[i / 8].clear();
        const BoxIndex box = members.order[start + i];
        first[i / 8].put(i % 8, boxes + 4 * static_cast<size_t>(box));
        group_of[box] = static_cast<BoxIndex>(g);
      }
      starts.push_back(starts.back() + (count + 7) / 8);
    }
  }
};

// One piece of work is one kept box, so any number of threads adds in the same order.
template <typename T>
void vote(const T* boxes, const T* scores, const Grouped& members, int64_t n, const int64_t* keep, int64_t kept,
          T threshold, const Voting& voting, T* new_boxes, T* new_scores) {
  const Voters<T> all(boxes, n, members);
  const auto find = chosen_voters<T>();
  // Few boxes are done before other threads have woken up.
  parallel_for(0, kept, n < 4096 ? std::max<int64_t>(kept, 1) : 16, [&](int64_t begin, int64_t end) {
    T overlaps[8];
    for (int64_t row = begin; row < end; ++row) {
      const T* box = boxes + 4 * keep[row];
      const BoxIndex group = all.group_of[keep[row]];
      const BoxIndex* numbers = &members.order[members.starts[group]];
      Votes votes;
      for (int64_t b = all.starts[group]; b < all.starts[group + 1]; ++b, numbers += 8) {
        for (unsigned found = find(all.blocks[b], box, threshold, overlaps); found != 0; found &= found - 1) {
          const int k = __builtin_ctz(found);
          const T* other = boxes + 4 * static_cast<size_t>(numbers[k]);
          const double corners[4] = {other[0], other[1], other[2], other[3]};
          votes.add(corners, scores[numbers[k]], overlaps[k], voting);
        }
      }
      votes.finish(box, scores[keep[row]], voting, new_boxes + 4 * row, new_scores + row);
    }
  });
}

void check_place(const char* name, const Tensor& tensor, const Tensor& boxes) {
  check(tensor.is_cuda() == boxes.is_cuda() && tensor.get_device_index() == boxes.get_device_index(),
        "box_voting: ", name, " must be on the device of boxes");
}

void check_arguments(const Tensor& boxes, const Tensor& scores, const Tensor& keep, const std::optional<Tensor>& groups,
                     double iou_threshold, int64_t method, double beta) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, "box_voting: boxes must be [N, 4], got ", ShapeOf{boxes});
  check(is_floating(boxes.scalar_type()), "box_voting: boxes must be floating point, got ", boxes.scalar_type());
  check(boxes.size(0) < kMaximumBoxes, "box_voting: at most ", kMaximumBoxes - 1, " boxes, got ", boxes.size(0));
  check(scores.dim() == 1 && scores.size(0) == boxes.size(0), "box_voting: scores must be [", boxes.size(0), "], got ",
        ShapeOf{scores});
  check(is_floating(scores.scalar_type()), "box_voting: scores must be floating point, got ", scores.scalar_type());
  check_place("scores", scores, boxes);
  check(keep.dim() == 1, "box_voting: keep must be [K], got ", ShapeOf{keep});
  check(keep.scalar_type() == ScalarType::Long, "box_voting: keep must be int64, got ", keep.scalar_type());
  check_place("keep", keep, boxes);
  check(iou_threshold > 0, "box_voting: iou_threshold must be positive, got ", iou_threshold);
  check(method >= 0 && method <= 5, "box_voting: method must be 0..5, got ", method);
  check(beta > 0, "box_voting: beta must be positive, got ", beta);
  if (!groups) return;
  check(groups->dim() == 1 && groups->size(0) == boxes.size(0), "box_voting: groups must be [", boxes.size(0),
        "], got ", ShapeOf{*groups});
  check(groups->scalar_type() == ScalarType::Long, "box_voting: groups must be int64, got ", groups->scalar_type());
  check_place("groups", *groups, boxes);
}

// Half precision is computed in float32; if boxes or scores are float64, both are.
ScalarType computed(const Tensor& boxes, const Tensor& scores) {
  const bool wide = boxes.scalar_type() == ScalarType::Double || scores.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

// The smallest T that is not below `threshold`: comparing with it in T decides as comparing with the double would.
template <typename T>
T at_least(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return static_cast<double>(rounded) < threshold ? std::nextafter(rounded, std::numeric_limits<T>::infinity())
                                                  : rounded;
}

std::tuple<Tensor, Tensor> box_voting_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& keep,
                                          const std::optional<Tensor>& groups, double iou_threshold, int64_t method,
                                          double beta) {
  check_arguments(boxes, scores, keep, groups, iou_threshold, method, beta);
  const ScalarType type = computed(boxes, scores);
  const Tensor corners = converted(boxes, type), given = converted(scores, type);
  const Tensor indices = torch::stable::contiguous(keep);
  const int64_t n = boxes.size(0), kept = keep.size(0);
  const int64_t* index = indices.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < kept; ++row) {
    check(index[row] >= 0 && index[row] < n, "box_voting: keep must hold indices from 0 to ", n - 1, ", got ",
          index[row]);
  }
  Tensor new_boxes = torch::stable::new_empty(corners, {kept, 4}), new_scores = torch::stable::new_empty(given, {kept});
  const std::optional<Tensor> ids = groups ? std::make_optional(torch::stable::contiguous(*groups)) : std::nullopt;
  const Grouped members = grouped(as_given(n), ids ? ids->const_data_ptr<int64_t>() : nullptr);
  const Voting voting{static_cast<VoteScore>(method), beta};
  THO_DISPATCH_V2(type, "box_voting", AT_WRAP([&] {
                    vote(corners.const_data_ptr<scalar_t>(), given.const_data_ptr<scalar_t>(), members, n, index, kept,
                         at_least<scalar_t>(iou_threshold), voting, new_boxes.mutable_data_ptr<scalar_t>(),
                         new_scores.mutable_data_ptr<scalar_t>());
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {converted(new_boxes, boxes.scalar_type()), converted(new_scores, scores.scalar_type())};
}

#ifdef MRCNN_CUDA
std::tuple<Tensor, Tensor> box_voting_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& keep,
                                           const std::optional<Tensor>& groups, double iou_threshold, int64_t method,
                                           double beta) {
  check_arguments(boxes, scores, keep, groups, iou_threshold, method, beta);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const ScalarType type = computed(boxes, scores);
  const Tensor corners = converted(boxes, type), given = converted(scores, type);
  const Tensor indices = torch::stable::contiguous(keep);
  const int64_t n = boxes.size(0), kept = keep.size(0);
  Tensor new_boxes = torch::stable::new_empty(corners, {kept, 4}), new_scores = torch::stable::new_empty(given, {kept});
  const std::optional<Tensor> ids = groups ? std::make_optional(torch::stable::contiguous(*groups)) : std::nullopt;
  const Voting voting{static_cast<VoteScore>(method), beta};
  if (kept > 0) {
    THO_DISPATCH_V2(type, "box_voting", AT_WRAP([&] {
                      check_launch(
                          "box_voting",
                          launch_box_voting<scalar_t>(
                              corners.const_data_ptr<scalar_t>(), given.const_data_ptr<scalar_t>(),
                              ids ? ids->const_data_ptr<int64_t>() : nullptr, n, indices.const_data_ptr<int64_t>(),
                              kept, at_least<scalar_t>(iou_threshold), voting, new_boxes.mutable_data_ptr<scalar_t>(),
                              new_scores.mutable_data_ptr<scalar_t>(), current_stream(corners)));
                    }),
                    AT_EXPAND(AT_FLOATING_TYPES));
  }
  return {converted(new_boxes, boxes.scalar_type()), converted(new_scores, scores.scalar_type())};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "box_voting(Tensor boxes, Tensor scores, Tensor keep, Tensor? groups, float iou_threshold, int method, "
      "float beta) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("box_voting", TORCH_BOX(&box_voting_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("box_voting", TORCH_BOX(&box_voting_cuda));
}
#endif

}  // namespace mrcnn
