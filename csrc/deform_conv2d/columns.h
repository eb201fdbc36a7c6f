#pragma once
// The inner loops of deformable convolution on the CPU: the four pixels around a sampling point are mixed into a piece
// of a column, and a column's gradient is spread over them. All channels of a pixel lie side by side.
#include <cstdint>

#include "../avx2.h"
#include "../common.h"
#include "deform_conv2d.h"

namespace mrcnn {

// column[c] = sum over corners of weights[i] * corners[i][c]
template <typename A>
void mix_corners_plain(const A* const* corners, const A* weights, int64_t channels, A* column) {
  const A *a = corners[0], *b = corners[1], *c = corners[2], *d = corners[3];
  for (int64_t i = 0; i < channels; ++i) {
    column[i] = weights[0] * a[i] + weights[1] * b[i] + weights[2] * c[i] + weights[3] * d[i];
  }
}

// One visit of a point for all that backward needs of it:
//
//   column[c] = sum over corners of weights[i] * corners[i][c]       gradients[i][c] += weights[i] * gradient[c]
//   products[i] = sum over channels of corners[i][c] * gradient[c]
template <typename A>
void spread_corners_plain(const A* const* corners, const A* weights, const A* gradient, int64_t channels, A* column,
                          A* const* gradients, A* products) {
  mix_corners_plain(corners, weights, channels, column);
  constexpr int kLanes = 8;
  for (int corner = 0; corner < 4; ++corner) {
    const A* pixel = corners[corner];
    A* sent = gradients[corner];
    A sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= channels; i += kLanes) {
      for (int k = 0; k < kLanes; ++k) sums[k] += pixel[i + k] * gradient[i + k];
    }
    for (; i < channels; ++i) sums[0] += pixel[i] * gradient[i];
    for (i = 0; i < channels; ++i) sent[i] += weights[corner] * gradient[i];
    products[corner] = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  }
}

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

inline __m256 mixed(const float* const* corners, const __m256* weights, int64_t i) {
  __m256 sum = _mm256_mul_ps(weights[0], load(corners[0] + i));
  sum = _mm256_fmadd_ps(weights[1], load(corners[1] + i), sum);
  sum = _mm256_fmadd_ps(weights[2], load(corners[2] + i), sum);
  return _mm256_fmadd_ps(weights[3], load(corners[3] + i), sum);
}

inline void mix_corners(const float* const* corners, const float* weights, int64_t channels, float* column) {
  const __m256 wide[4] = {_mm256_set1_ps(weights[0]), _mm256_set1_ps(weights[1]), _mm256_set1_ps(weights[2]),
                          _mm256_set1_ps(weights[3])};
  const float* const pixels[4] = {corners[0], corners[1], corners[2], corners[3]};
  int64_t i = 0;
  for (; i + 8 <= channels; i += 8) store(column + i, mixed(pixels, wide, i));
  for (; i < channels; ++i) {
    float sum = weights[0] * pixels[0][i];
    for (int k = 1; k < 4; ++k) sum = __builtin_fmaf(weights[k], pixels[k][i], sum);
    column[i] = sum;
  }
}

// The sums of four vectors.
inline __m128 sums_of(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 both = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
}

inline void spread_corners(const float* const* corners, const float* weights, const float* gradient, int64_t channels,
                           float* column, float* const* gradients, float* products) {
  const __m256 wide[4] = {_mm256_set1_ps(weights[0]), _mm256_set1_ps(weights[1]), _mm256_set1_ps(weights[2]),
                          _mm256_set1_ps(weights[3])};
  const float* const pixels[4] = {corners[0], corners[1], corners[2], corners[3]};
  float* const sent[4] = {gradients[0], gradients[1], gradients[2], gradients[3]};
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 8 <= channels; i += 8) {
    const __m256 g = load(gradient + i);
    __m256 mix = _mm256_setzero_ps();
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const __m256 pixel = load(pixels[k] + i);
      mix = _mm256_fmadd_ps(wide[k], pixel, mix);
      sums[k] = _mm256_fmadd_ps(pixel, g, sums[k]);
      store(sent[k] + i, _mm256_fmadd_ps(wide[k], g, load(sent[k] + i)));
    }
    store(column + i, mix);
  }
  _mm_storeu_ps(products, sums_of(sums[0], sums[1], sums[2], sums[3]));
  for (; i < channels; ++i) {
    float mix = 0;
    for (int k = 0; k < 4; ++k) {
      mix = __builtin_fmaf(weights[k], pixels[k][i], mix);
      products[k] = __builtin_fmaf(pixels[k][i], gradient[i], products[k]);
      sent[k][i] = __builtin_fmaf(weights[k], gradient[i], sent[k][i]);
    }
    column[i] = mix;
  }
}

#pragma GCC pop_options

}  // namespace avx2
#endif

// The fastest this processor has.
template <typename A>
struct CornerKernels {
  void (*mix)(const A* const*, const A*, int64_t, A*) = &mix_corners_plain<A>;
  void (*spread)(const A* const*, const A*, const A*, int64_t, A*, A* const*, A*) = &spread_corners_plain<A>;
};

template <typename A>
CornerKernels<A> corner_kernels() {
#ifdef __x86_64__
  if constexpr (std::is_same_v<A, float>) {
    if (has_avx2()) return {&avx2::mix_corners, &avx2::spread_corners};
  }
#endif
  return {};
}

}  // namespace mrcnn
