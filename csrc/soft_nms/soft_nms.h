#pragma once
// Shared by soft_nms.cpp and soft_nms_cuda.cu. All of it is added, multiplied and divided in one order and without
// contraction, so scores - and with them the order of the boxes - have the same bits on every device.
#include <cstdint>
#include <cstring>
#include <limits>

#include "../nms/nms.h"
#include "../portable.h"

namespace mrcnn {

// What a box that is picked does to the score of one that overlaps it.
enum class Decay { kHard, kLinear, kGaussian };

template <typename T>
struct SoftNms {
  Decay method;
  T iou_threshold;    // hard, linear: overlap above which scores decay
  T sigma;            // gaussian
  T score_threshold;  // boxes below it are dropped
};

// exp(x) for x <= 0, to a rounding or two.
template <typename T>
HOST_DEVICE T exp_of_negative(T x) {
  constexpr bool kSingle = sizeof(T) == 4;
  constexpr int kDegree = kSingle ? 7 : 13;
  // ln 2 in two parts, the first of which times any exponent is exact
  constexpr T kHigh = kSingle ? T(0.693359375) : T(6.93147180369123816490e-01);
  constexpr T kLow = kSingle ? T(-2.12194440054690583e-4) : T(1.90821492927058770002e-10);
  if (!(x > (kSingle ? T(-87) : T(-708)))) return T(0);
  const int exponent = static_cast<int>(x * T(1.4426950408889634) - T(0.5));
  const T rest = x - T(exponent) * kHigh - T(exponent) * kLow;
  T sum = T(1);
  for (int k = kDegree; k > 0; --k) sum = T(1) + sum * rest * (T(1) / T(k));
  T power;
  if constexpr (kSingle) {
    const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
    memcpy(&power, &bits, sizeof(power));
  } else {
    const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
    memcpy(&power, &bits, sizeof(power));
  }
  return sum * power;
}

// The score, or 0 for a box that is dropped: below the threshold, not above zero, or no number.
template <typename T>
HOST_DEVICE T accepted(T score, const SoftNms<T>& rule) {
  return score > T(0) && score >= rule.score_threshold ? score : T(0);
}

// A box's score once another one that overlaps it so much has been picked; 0: the box is dropped. It never rises.
template <typename T>
HOST_DEVICE T decayed(T score, T overlap, const SoftNms<T>& rule) {
  if (rule.method == Decay::kGaussian) {
    if (!(overlap > T(0))) return score;
    score *= exp_of_negative(-(overlap * overlap) / rule.sigma);
  } else {
    if (!(overlap > rule.iou_threshold)) return score;
    const T factor = rule.method == Decay::kLinear ? T(1) - overlap : T(0);
    score *= factor > T(0) ? factor : T(0);
  }
  return accepted(score, rule);
}

// Launches the CUDA kernel. `order` are the boxes' numbers with those of a group together and rising, `groups` the
// groups in that order; both null: one group. `live` is scratch of n numbers. Returns nullptr or an error message.
template <typename T>
const char* launch_soft_nms(const T* boxes, const T* scores, const int64_t* order, const int64_t* groups, int64_t n,
                            const SoftNms<T>& rule, T* live, T* decayed_scores, void* stream);

}  // namespace mrcnn
