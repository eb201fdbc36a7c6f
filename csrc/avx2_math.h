#pragma once
// Exponentials and logarithms of eight floats at a time, for processors with AVX2. Polynomials were fitted at Chebyshev
// points; the errors stated are the largest ones found against float64.
#ifdef __x86_64__
#include <immintrin.h>

namespace mrcnn::avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

// e^r for |r| <= log(2) / 2.
inline __m256 exp_near_zero(__m256 r) {
  __m256 sum = _mm256_set1_ps(1.39485830e-3f);
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(8.33326609e-3f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(4.16664075e-2f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.66666662e-1f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(0.5f));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.f));
  return _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.f));
}

// value * 2^n for whole n in [-252, 0]: two factors, because 2^-126 is the smallest that bits are put together for.
inline __m256 scaled_down(__m256 value, __m256i n) {
  const __m256i half = _mm256_srai_epi32(n, 1), bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(value, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}

// e^y for finite y <= 0, with denormal results.
inline __m256 exp_negative(__m256 y) {
  y = _mm256_max_ps(y, _mm256_set1_ps(-104.f));  // below it rounds to zero
  const __m256 n =
      _mm256_round_ps(_mm256_mul_ps(y, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // log(2) in two parts, the first with few enough bits for exact products
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), y);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  return scaled_down(exp_near_zero(r), _mm256_cvtps_epi32(n));
}

// log(1 + e) for e in [0, 1]: 2 atanh(e / (2 + e)), which loses nothing where e is small.
inline __m256 log1p_unit(__m256 e) {
  const __m256 s = _mm256_div_ps(e, _mm256_add_ps(e, _mm256_set1_ps(2.f)));
  const __m256 z = _mm256_mul_ps(s, s);
  __m256 sum = _mm256_set1_ps(0.14087329f);
  sum = _mm256_fmadd_ps(sum, z, _mm256_set1_ps(0.13980709f));
  sum = _mm256_fmadd_ps(sum, z, _mm256_set1_ps(0.20012427f));
  sum = _mm256_fmadd_ps(sum, z, _mm256_set1_ps(0.33333158f));
  const __m256 twice = _mm256_add_ps(s, s);
  return _mm256_fmadd_ps(_mm256_mul_ps(twice, z), sum, twice);
}

// q^power for normal q in (0, 1] and 0 <= power <= 64. The logarithm's whole and fractional part are multiplied by
// themselves, so that the error does not grow with the size of the logarithm.
inline __m256 pow_unit(__m256 q, __m256 power) {
  const __m256i bits = _mm256_castps_si256(q);
  // The exponent that leaves a mantissa in [sqrt(1/2), sqrt(2)).
  const __m256i exponent = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);
  const __m256 m = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
  const __m256 f = _mm256_sub_ps(m, _mm256_set1_ps(1.f));
  const __m256 s = _mm256_div_ps(f, _mm256_add_ps(f, _mm256_set1_ps(2.f)));
  const __m256 z = _mm256_mul_ps(s, s);
  __m256 sum = _mm256_set1_ps(0.1496422f);
  sum = _mm256_fmadd_ps(sum, z, _mm256_set1_ps(0.19987347f));
  sum = _mm256_fmadd_ps(sum, z, _mm256_set1_ps(0.33333408f));
  const __m256 twice = _mm256_add_ps(s, s);
  const __m256 log2_m =
      _mm256_mul_ps(_mm256_fmadd_ps(_mm256_mul_ps(twice, z), sum, twice), _mm256_set1_ps(1.44269504f));
  const __m256 whole = _mm256_cvtepi32_ps(exponent);
  const __m256 product = _mm256_mul_ps(power, whole), lost = _mm256_fmsub_ps(power, whole, product);
  const __m256 rest = _mm256_fmadd_ps(power, log2_m, lost);
  const __m256 n =
      _mm256_max_ps(_mm256_round_ps(_mm256_add_ps(product, rest), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                    _mm256_set1_ps(-252.f));
  __m256 r = _mm256_add_ps(_mm256_sub_ps(product, n), rest);
  r = _mm256_max_ps(r, _mm256_set1_ps(-0.5f));  // only where the result is zero anyway
  return scaled_down(exp_near_zero(_mm256_mul_ps(r, _mm256_set1_ps(0.693147181f))),
                     _mm256_min_epi32(_mm256_cvtps_epi32(n), _mm256_setzero_si256()));
}

#pragma GCC pop_options

}  // namespace mrcnn::avx2
#endif
