#pragma once
// Sigmoid focal loss of some thousand logits in a row on the CPU, plain and eight at a time with AVX2.
#include <algorithm>
#include <cstdint>

#include "../avx2.h"
#include "../avx2_math.h"
#include "../common.h"
#include "sigmoid_focal_loss.h"

namespace mrcnn {

// Writes each loss unless `losses` is null, and returns their sum.
template <typename T, typename U>
double losses_plain(const T* logits, const U* targets, int64_t count, Focal<accumulator_t<T>> focal, T* losses) {
  using A = accumulator_t<T>;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const A loss = focal_loss(static_cast<A>(logits[i]), static_cast<A>(targets[i]), focal);
    if (losses != nullptr) losses[i] = static_cast<T>(loss);
    sum += static_cast<double>(loss);
  }
  return sum;
}

// The gradients of the losses come one for each if kEach, else they are all the same.
template <bool kEach, typename T, typename U>
void gradients_plain(const T* logits, const U* targets, int64_t count, Focal<accumulator_t<T>> focal, const T* each,
                     accumulator_t<T> same, T* gradients) {
  using A = accumulator_t<T>;
  for (int64_t i = 0; i < count; ++i) {
    const A slope = focal_loss_gradient(static_cast<A>(logits[i]), static_cast<A>(targets[i]), focal);
    gradients[i] = static_cast<T>((kEach ? static_cast<A>(each[i]) : same) * slope);
  }
}

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

// The gammas that need no power; kAny is everything else.
enum class Gamma { kZero, kOne, kTwo, kAny };

// What loss and gradient share, as in sigmoid_focal_loss.h.
struct Terms {
  __m256 p, rest, right;   // sigmoid, one minus it, one minus the target
  __m256 wrong, power;     // q and q^gamma
  __m256 weight, entropy;  // of the class, cross entropy
};

inline __m256 ones() {
  return _mm256_set1_ps(1.f);
}

// False if any of the logits is infinite, huge or NaN or, where powers are taken, any of the shares so small or
// negative that pow_unit has no answer: the plain functions have one.
template <Gamma kGamma>
inline bool terms_of(__m256 x, __m256 t, Focal<float> focal, Terms& terms) {
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.f), x);
  __m256 fits = _mm256_cmp_ps(size, _mm256_set1_ps(1e30f), _CMP_LT_OQ);
  const __m256 e = exp_negative(_mm256_or_ps(x, _mm256_set1_ps(-0.f)));
  const __m256 large = _mm256_div_ps(ones(), _mm256_add_ps(ones(), e)), small = _mm256_mul_ps(e, large);
  terms.p = _mm256_blendv_ps(large, small, x);  // by the sign
  terms.rest = _mm256_blendv_ps(small, large, x);
  terms.right = _mm256_sub_ps(ones(), t);
  terms.wrong = _mm256_fmadd_ps(terms.p, terms.right, _mm256_mul_ps(terms.rest, t));
  terms.entropy = _mm256_fmadd_ps(size, _mm256_blendv_ps(terms.right, t, x), log1p_unit(e));
  terms.weight = _mm256_fmadd_ps(_mm256_set1_ps(focal.alpha < 0 ? 1.f : focal.alpha), t,
                                 _mm256_mul_ps(_mm256_set1_ps(focal.alpha < 0 ? 1.f : 1.f - focal.alpha), terms.right));
  if constexpr (kGamma == Gamma::kZero) {
    terms.power = ones();
  } else if constexpr (kGamma == Gamma::kOne) {
    terms.power = terms.wrong;
  } else if constexpr (kGamma == Gamma::kTwo) {
    terms.power = _mm256_mul_ps(terms.wrong, terms.wrong);
  } else {
    fits = _mm256_and_ps(fits, _mm256_cmp_ps(terms.wrong, _mm256_set1_ps(1.2e-38f), _CMP_GT_OQ));
    fits = _mm256_and_ps(fits, _mm256_cmp_ps(terms.wrong, _mm256_set1_ps(1.5f), _CMP_LT_OQ));
    terms.power = pow_unit(terms.wrong, _mm256_set1_ps(focal.gamma));
  }
  return _mm256_movemask_ps(fits) == 0xff;
}

template <Gamma kGamma>
inline bool eight_losses(__m256 x, __m256 t, Focal<float> focal, __m256& losses) {
  Terms terms;
  const bool fits = terms_of<kGamma>(x, t, focal, terms);
  losses = _mm256_mul_ps(_mm256_mul_ps(terms.weight, terms.power), terms.entropy);
  return fits;
}

template <Gamma kGamma>
inline bool eight_gradients(__m256 x, __m256 t, Focal<float> focal, __m256& gradients) {
  Terms terms;
  const bool fits = terms_of<kGamma>(x, t, focal, terms);
  const __m256 difference = _mm256_fmsub_ps(terms.p, terms.right, _mm256_mul_ps(terms.rest, t));
  __m256 sum = _mm256_mul_ps(terms.power, difference);
  if constexpr (kGamma != Gamma::kZero) {
    __m256 lower = _mm256_mul_ps(terms.p, terms.rest);
    if constexpr (kGamma == Gamma::kTwo) lower = _mm256_mul_ps(lower, terms.wrong);
    if constexpr (kGamma == Gamma::kAny) lower = _mm256_mul_ps(terms.power, _mm256_div_ps(lower, terms.wrong));
    lower = _mm256_mul_ps(lower, _mm256_mul_ps(_mm256_set1_ps(focal.gamma), _mm256_sub_ps(terms.right, t)));
    sum = _mm256_fmadd_ps(lower, terms.entropy, sum);
  }
  gradients = _mm256_mul_ps(terms.weight, sum);
  return fits;
}

template <Gamma kGamma, typename T, typename U>
double losses(const T* logits, const U* targets, int64_t count, Focal<float> focal, T* out) {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  int64_t i = 0;
  double rest = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 eight;
    if (!eight_losses<kGamma>(load(logits + i), load(targets + i), focal, eight)) {
      rest += losses_plain(logits + i, targets + i, 8, focal, out == nullptr ? nullptr : out + i);
      continue;
    }
    if (out != nullptr) store(out + i, eight);
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(eight)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(eight, 1)));
  }
  if (i < count) rest += losses_plain(logits + i, targets + i, count - i, focal, out == nullptr ? nullptr : out + i);
  double lanes[4];
  _mm256_storeu_pd(lanes, _mm256_add_pd(low, high));
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + rest;
}

template <Gamma kGamma, bool kEach, typename T, typename U>
void gradients(const T* logits, const U* targets, int64_t count, Focal<float> focal, const T* each, float same,
               T* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 eight;
    if (eight_gradients<kGamma>(load(logits + i), load(targets + i), focal, eight)) {
      store(out + i, _mm256_mul_ps(kEach ? load(each + i) : _mm256_set1_ps(same), eight));
    } else {
      gradients_plain<kEach>(logits + i, targets + i, 8, focal, kEach ? each + i : nullptr, same, out + i);
    }
  }
  if (i < count) {
    gradients_plain<kEach>(logits + i, targets + i, count - i, focal, kEach ? each + i : nullptr, same, out + i);
  }
}

#pragma GCC pop_options

}  // namespace avx2
#endif

template <typename T, typename U>
using Losses = double (*)(const T*, const U*, int64_t, Focal<accumulator_t<T>>, T*);
template <typename T, typename U>
using Gradients = void (*)(const T*, const U*, int64_t, Focal<accumulator_t<T>>, const T*, accumulator_t<T>, T*);

template <typename T, typename U>
Losses<T, U> chosen_losses([[maybe_unused]] double gamma) {
#ifdef __x86_64__
  if constexpr (!std::is_same_v<T, double>) {
    if (has_avx2() && gamma <= 64) {
      using avx2::Gamma;
      if (gamma == 0) return &avx2::losses<Gamma::kZero, T, U>;
      if (gamma == 1) return &avx2::losses<Gamma::kOne, T, U>;
      if (gamma == 2) return &avx2::losses<Gamma::kTwo, T, U>;
      return &avx2::losses<Gamma::kAny, T, U>;
    }
  }
#endif
  return &losses_plain<T, U>;
}

template <bool kEach, typename T, typename U>
Gradients<T, U> chosen_gradients([[maybe_unused]] double gamma) {
#ifdef __x86_64__
  if constexpr (!std::is_same_v<T, double>) {
    if (has_avx2() && gamma <= 64) {
      using avx2::Gamma;
      if (gamma == 0) return &avx2::gradients<Gamma::kZero, kEach, T, U>;
      if (gamma == 1) return &avx2::gradients<Gamma::kOne, kEach, T, U>;
      if (gamma == 2) return &avx2::gradients<Gamma::kTwo, kEach, T, U>;
      return &avx2::gradients<Gamma::kAny, kEach, T, U>;
    }
  }
#endif
  return &gradients_plain<kEach, T, U>;
}

}  // namespace mrcnn
