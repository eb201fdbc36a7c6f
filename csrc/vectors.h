#pragma once
// Vectors of eight floats (AVX2) and of sixteen (AVX-512) under the same names, for headers that are compiled once for
// each width. What lies in a namespace may only be called where has_avx2() or has_avx512() says so.
#include "avx2.h"
#include "common.h"

#ifdef __x86_64__
namespace mrcnn {

namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

constexpr int kLanes = 8;
typedef __m256 Floats;
typedef int32_t Ints __attribute__((vector_size(32)));
typedef Ints Mask;

inline Floats broadcast(float value) {
  return _mm256_set1_ps(value);
}
inline Floats fused(Floats a, Floats b, Floats c) {  // a * b + c, rounded once
  return _mm256_fmadd_ps(a, b, c);
}
inline Floats larger(Floats a, Floats b) {  // b where a is NaN
  return _mm256_max_ps(a, b);
}
inline Floats rounded(Floats a) {  // to a whole number, halves to an even one
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats by_sign(Floats sign, Floats negative, Floats positive) {
  return _mm256_blendv_ps(positive, negative, sign);
}
inline Mask below(Floats a, Floats b) {  // false where one is NaN
  return reinterpret_cast<Mask>(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline bool all(Mask mask) {
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) == 0xff;
}
#include "vector_math.h"

#pragma GCC pop_options

}  // namespace avx2

namespace avx512 {

#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma,f16c")

constexpr int kLanes = 16;
typedef __m512 Floats;
typedef int32_t Ints __attribute__((vector_size(64)));
typedef __mmask16 Mask;

// The masks below that leave nothing out are there for GCC 12, which takes the plain forms of these intrinsics for
// reading variables that were never set.

template <typename T>
inline Floats load(const T* p) {
  const __m512d low = _mm512_castpd256_pd512(_mm256_castps_pd(avx2::load(p)));
  return _mm512_castpd_ps(_mm512_maskz_insertf64x4(0xff, low, _mm256_castps_pd(avx2::load(p + 8)), 1));
}
inline Floats load(const float* p) {
  return _mm512_loadu_ps(p);
}
// Eight of the sixteen.
inline __m256 lower(Floats v) {
  return _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xff, _mm512_castps_pd(v), 0));
}
inline __m256 upper(Floats v) {
  return _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xff, _mm512_castps_pd(v), 1));
}
template <typename T>
inline void store(T* p, Floats v) {
  avx2::store(p, lower(v));
  avx2::store(p + 8, upper(v));
}
inline void store(float* p, Floats v) {
  _mm512_storeu_ps(p, v);
}

inline Floats broadcast(float value) {
  return _mm512_set1_ps(value);
}
inline Floats fused(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Floats larger(Floats a, Floats b) {
  return _mm512_maskz_max_ps(0xffff, a, b);
}
inline Floats rounded(Floats a) {
  return _mm512_maskz_roundscale_ps(0xffff, a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats by_sign(Floats sign, Floats negative, Floats positive) {
  return _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(_mm512_castps_si512(sign), _mm512_setzero_si512()), positive,
                              negative);
}
inline Mask below(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
inline bool all(Mask mask) {
  return mask == 0xffff;
}
#include "vector_math.h"

#pragma GCC pop_options

}  // namespace avx512

}  // namespace mrcnn
#endif
