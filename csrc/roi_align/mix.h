#pragma once
// The inner loop of RoIAlign on channels-last memory, forward and backward alike: a weighted sum of pixels.
//
//   out[c] = sum over shares of  weight * source[c]
//
// Forward a bin is mixed from the pixels under it; backward a pixel is mixed from the bins above it.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../avx2.h"
#include "../common.h"
#include "../stream.h"
#include "roi_align.h"

namespace mrcnn {

// The first channel of a pixel, and how much of it is taken.
template <typename T>
struct Share {
  const T* source;
  accumulator_t<T> weight;
};

template <typename T>
void mix_plain(const Share<T>* shares, int64_t count, int64_t channels, T* out) {
  using A = accumulator_t<T>;
  constexpr int kPass = 16;
  for (int64_t c = 0; c < channels; c += kPass) {
    const int n = static_cast<int>(channels - c < kPass ? channels - c : kPass);
    A sums[kPass] = {};
    for (int64_t i = 0; i < count; ++i) {
      const T* pixel = shares[i].source + c;
      const A weight = shares[i].weight;
      if (n == kPass) {
        for (int k = 0; k < kPass; ++k) sums[k] += weight * static_cast<A>(pixel[k]);
      } else {
        for (int k = 0; k < n; ++k) sums[k] += weight * static_cast<A>(pixel[k]);
      }
    }
    for (int k = 0; k < n; ++k) out[c + k] = static_cast<T>(sums[k]);
  }
}

template <typename T>
void clear_plain(T* out, int64_t count) {
  std::memset(static_cast<void*>(out), 0, count * sizeof(T));
}

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

// Sixteen channels as two vectors. Which channel lies where is each type's own business: sums are made lane by lane.
struct Lanes {
  __m256 first, second;
};

inline Lanes lanes(const float* p) {
  return {load(p), load(p + 8)};
}
inline Lanes lanes(const Half* p) {
  return {load(p), load(p + 8)};
}
inline Lanes lanes(const BFloat16* p) {
  // The upper half of a float32 as it is: odd channels need their neighbour masked out, even ones a shift.
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i odd = _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), _mm256_castsi256_ps(odd)};
}

template <bool kStream>
inline void put(float* p, Lanes v) {
  if (kStream) {
    _mm256_stream_ps(p, v.first);
    _mm256_stream_ps(p + 8, v.second);
  } else {
    store(p, v.first);
    store(p + 8, v.second);
  }
}

template <bool kStream>
inline void put(__m256i* p, __m256i v) {
  kStream ? _mm256_stream_si256(p, v) : _mm256_storeu_si256(p, v);
}

template <bool kStream>
inline void put(Half* p, Lanes v) {
  const __m128i low = _mm256_cvtps_ph(v.first, _MM_FROUND_TO_NEAREST_INT),
                high = _mm256_cvtps_ph(v.second, _MM_FROUND_TO_NEAREST_INT);
  put<kStream>(reinterpret_cast<__m256i*>(p), _mm256_set_m128i(high, low));
}

template <bool kStream>
inline void put(BFloat16* p, Lanes v) {
  const __m256i even = _mm256_srli_epi32(rounded_to_bfloat16(v.first), 16);
  put<kStream>(reinterpret_cast<__m256i*>(p), _mm256_blend_epi16(even, rounded_to_bfloat16(v.second), 0xaa));
}

// kCount times sixteen channels, held in registers over all shares.
template <int kCount, bool kStream, typename T>
inline void pass(const Share<T>* shares, int64_t count, int64_t c, T* out) {
  Lanes sums[kCount];
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) sums[k] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t i = 0; i < count; ++i) {
    const T* pixel = shares[i].source + c;
    const __m256 weight = _mm256_set1_ps(shares[i].weight);
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) {
      const Lanes values = lanes(pixel + 16 * k);
      sums[k].first = _mm256_fmadd_ps(weight, values.first, sums[k].first);
      sums[k].second = _mm256_fmadd_ps(weight, values.second, sums[k].second);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) put<kStream>(out + c + 16 * k, sums[k]);
}

template <bool kStream, typename T>
void mix(const Share<T>* shares, int64_t count, int64_t channels, T* out) {
  int64_t c = 0;
  for (; c + 64 <= channels; c += 64) pass<4, kStream>(shares, count, c, out);
  for (; c + 16 <= channels; c += 16) pass<1, kStream>(shares, count, c, out);
  for (; c < channels; ++c) {
    float sum = 0.f;
    for (int64_t i = 0; i < count; ++i) {
      sum = __builtin_fmaf(shares[i].weight, static_cast<float>(shares[i].source[c]), sum);
    }
    out[c] = static_cast<T>(sum);
  }
}

// `out` must lie on a boundary of 32 bytes, and so must its end.
template <typename T>
void clear_streamed(T* out, int64_t count) {
  auto* p = reinterpret_cast<__m256i*>(out);
  for (auto* end = reinterpret_cast<__m256i*>(out + count); p < end; ++p) put<true>(p, _mm256_setzero_si256());
}

#pragma GCC pop_options

}  // namespace avx2
#endif

// The fastest way this processor has to write results.
template <typename T>
struct Mixer {
  void (*mix)(const Share<T>*, int64_t, int64_t, T*) = &mix_plain<T>;
  void (*clear)(T*, int64_t) = &clear_plain<T>;
  bool streams = false;

  void finish() const {
    if (streams) finish_streaming();
  }
};

// For results of `channels` that are `bytes` altogether. All addresses must be multiples of 32 bytes for them to be
// streamed, which Torch's own allocations are.
template <typename T>
Mixer<T> chosen_mixer(int64_t channels, int64_t bytes, const std::vector<const void*>& targets) {
  Mixer<T> chosen;
#ifdef __x86_64__
  if constexpr (!std::is_same_v<T, double>) {
    if (has_avx2()) {
      chosen.streams = bytes >= kStreamedBytes && channels * sizeof(T) % 32 == 0;
      for (const void* target : targets) chosen.streams &= reinterpret_cast<uintptr_t>(target) % 32 == 0;
      chosen.mix = chosen.streams ? &avx2::mix<true, T> : &avx2::mix<false, T>;
      if (chosen.streams) chosen.clear = &avx2::clear_streamed<T>;
    }
  }
#endif
  return chosen;
}

}  // namespace mrcnn
