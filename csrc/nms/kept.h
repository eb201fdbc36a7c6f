#pragma once
// The boxes kept so far, eight to a block, and whether any of them suppresses another box. All of this decides as
// overlaps() of nms.h does, to the bit.
#include <cstring>
#include <limits>

#include "../common.h"
#include "nms.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace mrcnn {

// Eight boxes, coordinate by coordinate. Free places hold NaN, which overlaps nothing.
template <typename T>
struct alignas(64) Block {
  T x1[8], y1[8], x2[8], y2[8], area[8];
  int32_t next;  // of a chain; -1 ends it

  void clear() {
    for (T* column : {x1, y1, x2, y2, area}) std::fill_n(column, 8, std::numeric_limits<T>::quiet_NaN());
    next = -1;
  }

  void put(int place, const T* box) {
    x1[place] = box[0];
    y1[place] = box[1];
    x2[place] = box[2];
    y2[place] = box[3];
    area[place] = (box[2] - box[0]) * (box[3] - box[1]);
  }
};

// Whether one of the eight overlaps `box` by more than the threshold, which is not negative.
template <typename T>
inline bool suppresses(const Block<T>& block, const T* box, T area, T threshold) {
  bool any = false;
  for (int k = 0; k < 8; ++k) {
    const T left = box[0] < block.x1[k] ? block.x1[k] : box[0], right = block.x2[k] < box[2] ? block.x2[k] : box[2];
    const T top = box[1] < block.y1[k] ? block.y1[k] : box[1], bottom = block.y2[k] < box[3] ? block.y2[k] : box[3];
    const T width = right - left > T(0) ? right - left : T(0), height = bottom - top > T(0) ? bottom - top : T(0);
    const T intersection = width * height;
    any |= intersection / (block.area[k] + area - intersection) > threshold;
  }
  return any;
}

// Whether one of the boxes in blocks[0..count) suppresses `box`.
template <typename T>
bool run_suppresses(const Block<T>* blocks, int64_t count, const T* box, T threshold) {
  const T area = (box[2] - box[0]) * (box[3] - box[1]);
  for (int64_t k = 0; k < count; ++k) {
    if (suppresses(blocks[k], box, area, threshold)) return true;
  }
  return false;
}

// Whether one of the boxes in the chains that begin at blocks[heads[0..count)] suppresses `box`.
template <typename T>
bool chain_suppresses(const Block<T>* blocks, const int32_t* heads, int64_t count, const T* box, T threshold) {
  const T area = (box[2] - box[0]) * (box[3] - box[1]);
  for (int64_t k = 0; k < count; ++k) {
    for (int32_t at = heads[k]; at >= 0; at = blocks[at].next) {
      if (suppresses(blocks[at], box, area, threshold)) return true;
    }
  }
  return false;
}

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

struct Candidate {
  __m256 x1, y1, x2, y2, area, threshold;

  Candidate(const float* box, float limit)
      : x1(_mm256_set1_ps(box[0])),
        y1(_mm256_set1_ps(box[1])),
        x2(_mm256_set1_ps(box[2])),
        y2(_mm256_set1_ps(box[3])),
        area(_mm256_set1_ps((box[2] - box[0]) * (box[3] - box[1]))),
        threshold(_mm256_set1_ps(limit)) {}
};

inline bool suppresses(const Block<float>& block, const Candidate& box) {
  const __m256 zero = _mm256_setzero_ps();
  const __m256 right = _mm256_min_ps(box.x2, _mm256_load_ps(block.x2));
  const __m256 left = _mm256_max_ps(box.x1, _mm256_load_ps(block.x1));
  const __m256 bottom = _mm256_min_ps(box.y2, _mm256_load_ps(block.y2));
  const __m256 top = _mm256_max_ps(box.y1, _mm256_load_ps(block.y1));
  // max returns its second operand where the first is NaN
  const __m256 width = _mm256_max_ps(_mm256_sub_ps(right, left), zero);
  const __m256 height = _mm256_max_ps(_mm256_sub_ps(bottom, top), zero);
  const __m256 intersection = _mm256_mul_ps(width, height);
  const __m256 both = _mm256_add_ps(_mm256_load_ps(block.area), box.area);
  const __m256 joined = _mm256_sub_ps(both, intersection);
  // Rounding keeps the order of numbers. So intersection / joined > threshold, rounded or not, implies intersection >=
  // round(threshold * joined) for positive `joined`, and any intersection passes for one that is not: few boxes are
  // left to be divided.
  const __m256 near = _mm256_cmp_ps(intersection, _mm256_mul_ps(box.threshold, joined), _CMP_GE_OQ);
  if (_mm256_movemask_ps(near) == 0) return false;
  const __m256 overlap = _mm256_div_ps(intersection, joined);
  return _mm256_movemask_ps(_mm256_cmp_ps(overlap, box.threshold, _CMP_GT_OQ)) != 0;
}

inline bool run_suppresses(const Block<float>* blocks, int64_t count, const float* box, float threshold) {
  const Candidate candidate(box, threshold);
  for (int64_t k = 0; k < count; ++k) {
    if (suppresses(blocks[k], candidate)) return true;
  }
  return false;
}

inline bool chain_suppresses(const Block<float>* blocks, const int32_t* heads, int64_t count, const float* box,
                             float threshold) {
  const Candidate candidate(box, threshold);
  for (int64_t k = 0; k < count; ++k) {
    for (int32_t at = heads[k]; at >= 0; at = blocks[at].next) {
      if (suppresses(blocks[at], candidate)) return true;
    }
  }
  return false;
}

#pragma GCC pop_options

}  // namespace avx2
#endif

template <typename T>
struct Scans {
  bool (*run)(const Block<T>*, int64_t, const T*, T);
  bool (*chains)(const Block<T>*, const int32_t*, int64_t, const T*, T);
};

template <typename T>
Scans<T> chosen_scans() {
#ifdef __x86_64__
  if constexpr (std::is_same_v<T, float>) {
    if (has_avx2()) return {&avx2::run_suppresses, &avx2::chain_suppresses};
  }
#endif
  return {&run_suppresses<T>, &chain_suppresses<T>};
}

}  // namespace mrcnn
