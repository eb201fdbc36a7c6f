#pragma once
// Sigmoid focal loss of some thousand logits in a row on the CPU: plain, eight at a time with AVX2 and sixteen with
// AVX-512, which give the same bits.
#include <algorithm>
#include <cstdint>

#include "../common.h"
#include "../vectors.h"
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
// The gammas that need no power; kAny is everything else.
enum class Gamma { kZero, kOne, kTwo, kAny };

// The sum of losses, the same whether they come eight or sixteen at a time.
struct LossSum {
  __m256d low, high;
  double rest;
};

namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

#include "terms.h"

inline void add(__m256 eight, LossSum& sum) {
  sum.low = _mm256_add_pd(sum.low, _mm256_cvtps_pd(_mm256_castps256_ps128(eight)));
  sum.high = _mm256_add_pd(sum.high, _mm256_cvtps_pd(_mm256_extractf128_ps(eight, 1)));
}

inline double total(const LossSum& sum) {
  double lanes[4];
  _mm256_storeu_pd(lanes, _mm256_add_pd(sum.low, sum.high));
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + sum.rest;
}

// Adds the losses to `sum`, and writes them unless `out` is null.
template <Gamma kGamma, typename T, typename U>
void add_losses(const T* logits, const U* targets, int64_t count, Focal<float> focal, T* out, LossSum& sum) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    Floats eight;
    if (!losses_of<kGamma>(load(logits + i), load(targets + i), focal, eight)) {
      sum.rest += losses_plain(logits + i, targets + i, 8, focal, out == nullptr ? nullptr : out + i);
      continue;
    }
    if (out != nullptr) store(out + i, eight);
    add(eight, sum);
  }
  if (i < count) {
    sum.rest += losses_plain(logits + i, targets + i, count - i, focal, out == nullptr ? nullptr : out + i);
  }
}

template <Gamma kGamma, typename T, typename U>
double losses(const T* logits, const U* targets, int64_t count, Focal<float> focal, T* out) {
  LossSum sum{};
  add_losses<kGamma>(logits, targets, count, focal, out, sum);
  return total(sum);
}

template <Gamma kGamma, bool kEach, typename T, typename U>
void gradients(const T* logits, const U* targets, int64_t count, Focal<float> focal, const T* each, float same,
               T* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    Floats eight;
    if (gradients_of<kGamma>(load(logits + i), load(targets + i), focal, eight)) {
      store(out + i, (kEach ? load(each + i) : broadcast(same)) * eight);
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

namespace avx512 {

#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma,f16c")

#include "terms.h"

template <Gamma kGamma, typename T, typename U>
double losses(const T* logits, const U* targets, int64_t count, Focal<float> focal, T* out) {
  LossSum sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Floats sixteen;
    if (!losses_of<kGamma>(load(logits + i), load(targets + i), focal, sixteen)) {
      avx2::add_losses<kGamma>(logits + i, targets + i, kLanes, focal, out == nullptr ? nullptr : out + i, sum);
      continue;
    }
    if (out != nullptr) store(out + i, sixteen);
    avx2::add(lower(sixteen), sum);
    avx2::add(upper(sixteen), sum);
  }
  avx2::add_losses<kGamma>(logits + i, targets + i, count - i, focal, out == nullptr ? nullptr : out + i, sum);
  return avx2::total(sum);
}

template <Gamma kGamma, bool kEach, typename T, typename U>
void gradients(const T* logits, const U* targets, int64_t count, Focal<float> focal, const T* each, float same,
               T* out) {
  const auto narrower = [&](int64_t i, int64_t some) {
    avx2::gradients<kGamma, kEach>(logits + i, targets + i, some, focal, kEach ? each + i : nullptr, same, out + i);
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Floats sixteen;
    if (gradients_of<kGamma>(load(logits + i), load(targets + i), focal, sixteen)) {
      store(out + i, (kEach ? load(each + i) : broadcast(same)) * sixteen);
    } else {
      narrower(i, kLanes);
    }
  }
  narrower(i, count - i);
}

#pragma GCC pop_options

}  // namespace avx512

// Calls with_gamma with the kind that `gamma` is, as a constant.
template <typename WithGamma>
auto for_gamma(double gamma, const WithGamma& with_gamma) {
  if (gamma == 0) return with_gamma(std::integral_constant<Gamma, Gamma::kZero>{});
  if (gamma == 1) return with_gamma(std::integral_constant<Gamma, Gamma::kOne>{});
  if (gamma == 2) return with_gamma(std::integral_constant<Gamma, Gamma::kTwo>{});
  return with_gamma(std::integral_constant<Gamma, Gamma::kAny>{});
}
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
      return for_gamma(gamma, [](auto kind) -> Losses<T, U> {
        return has_avx512() ? &avx512::losses<kind, T, U> : &avx2::losses<kind, T, U>;
      });
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
      return for_gamma(gamma, [](auto kind) -> Gradients<T, U> {
        return has_avx512() ? &avx512::gradients<kind, kEach, T, U> : &avx2::gradients<kind, kEach, T, U>;
      });
    }
  }
#endif
  return &gradients_plain<kEach, T, U>;
}

}  // namespace mrcnn
