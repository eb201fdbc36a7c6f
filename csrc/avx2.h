#pragma once
// Eight floats at a time on processors with AVX2, from and to every element type; and whole arrays converted, with or
// without AVX2. What is compiled between the pragmas may only be called where has_avx2() says so.
#include <cstdint>

#include "common.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace mrcnn {

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

inline __m256 load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline __m256 load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m256 load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline void store(float* p, __m256 v) {
  _mm256_storeu_ps(p, v);
}
inline void store(Half* p, __m256 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
// The bfloat16 of each number in the upper half of its 32 bits. Round to nearest even by adding half of the last kept
// bit; a NaN would overflow into infinity, so it is set apart.
inline __m256i rounded_to_bfloat16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
  const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(is_nan));
}
inline void store(BFloat16* p, __m256 v) {
  const __m256i high = _mm256_srli_epi32(rounded_to_bfloat16(v), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

template <typename T>
void widen(const T* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

template <typename T>
void narrow(const float* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = static_cast<T>(from[i]);
}

#pragma GCC pop_options

}  // namespace avx2
#endif

template <typename T>
void widen_plain(const T* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

template <typename T>
void narrow_plain(const float* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from[i]);
}

// Half precision to float32 and back.
template <typename T>
auto chosen_widen() {
#ifdef __x86_64__
  if (has_avx2()) return &avx2::widen<T>;
#endif
  return &widen_plain<T>;
}

template <typename T>
auto chosen_narrow() {
#ifdef __x86_64__
  if (has_avx2()) return &avx2::narrow<T>;
#endif
  return &narrow_plain<T>;
}

}  // namespace mrcnn
