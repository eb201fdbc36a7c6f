#pragma once
// The inner loop of RoIAlign on channels-last memory, forward and backward alike: a weighted mix of pixels.
//
//   out[c] (+)= sum over rows i, columns j of  rows[i].weight * columns[j].weight * source[pixel(i, j)][c]
//
// Forward a bin is mixed from the pixels under it; backward a pixel is mixed from the bins above it.
#include <cstdint>

#include "../avx2.h"
#include "../common.h"
#include "roi_align.h"

namespace mrcnn {

// Distances in elements between rows and columns of the source.
struct Strides {
  int64_t row, column;
};

template <bool kAdd, typename In, typename Out>
void mix_plain(Taps<accumulator_t<In>> rows, Taps<accumulator_t<In>> columns, const In* source, Strides strides,
               int64_t channels, Out* out) {
  using A = accumulator_t<In>;
  constexpr int kPass = 16;
  for (int64_t c = 0; c < channels; c += kPass) {
    const int n = static_cast<int>(channels - c < kPass ? channels - c : kPass);
    A sums[kPass] = {};
    if (kAdd) {
      for (int k = 0; k < n; ++k) sums[k] = static_cast<A>(out[c + k]);
    }
    for (int i = 0; i < rows.count; ++i) {
      const In* row = source + rows.data[i].position * strides.row + c;
      for (int j = 0; j < columns.count; ++j) {
        const In* pixel = row + columns.data[j].position * strides.column;
        const A weight = rows.data[i].weight * columns.data[j].weight;
        for (int k = 0; k < n; ++k) sums[k] += weight * static_cast<A>(pixel[k]);
      }
    }
    for (int k = 0; k < n; ++k) out[c + k] = static_cast<Out>(sums[k]);
  }
}

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

// kVectors times eight channels, held in registers over all taps.
template <int kVectors, bool kAdd, typename In, typename Out>
inline void pass(Taps<float> rows, Taps<float> columns, const In* source, Strides strides, Out* out) {
  __m256 sums[kVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kVectors; ++k) sums[k] = kAdd ? load(out + 8 * k) : _mm256_setzero_ps();
  for (int i = 0; i < rows.count; ++i) {
    const In* row = source + rows.data[i].position * strides.row;
    for (int j = 0; j < columns.count; ++j) {
      const In* pixel = row + columns.data[j].position * strides.column;
      const __m256 weight = _mm256_set1_ps(rows.data[i].weight * columns.data[j].weight);
#pragma GCC unroll 8
      for (int k = 0; k < kVectors; ++k) sums[k] = _mm256_fmadd_ps(weight, load(pixel + 8 * k), sums[k]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kVectors; ++k) store(out + 8 * k, sums[k]);
}

template <bool kAdd, typename In, typename Out>
void mix(Taps<float> rows, Taps<float> columns, const In* source, Strides strides, int64_t channels, Out* out) {
  int64_t c = 0;
  for (; c + 64 <= channels; c += 64) pass<8, kAdd>(rows, columns, source + c, strides, out + c);
  if (c + 32 <= channels) {
    pass<4, kAdd>(rows, columns, source + c, strides, out + c);
    c += 32;
  }
  for (; c + 8 <= channels; c += 8) pass<1, kAdd>(rows, columns, source + c, strides, out + c);
  for (; c < channels; ++c) {
    float sum = kAdd ? static_cast<float>(out[c]) : 0.f;
    for (int i = 0; i < rows.count; ++i) {
      const In* row = source + rows.data[i].position * strides.row + c;
      for (int j = 0; j < columns.count; ++j) {
        const float weight = rows.data[i].weight * columns.data[j].weight;
        sum = __builtin_fmaf(weight, static_cast<float>(row[columns.data[j].position * strides.column]), sum);
      }
    }
    out[c] = static_cast<Out>(sum);
  }
}

#pragma GCC pop_options

}  // namespace avx2
#endif

template <bool kAdd, typename In, typename Out>
using Mix = void (*)(Taps<accumulator_t<In>>, Taps<accumulator_t<In>>, const In*, Strides, int64_t, Out*);

// The fastest way this processor has.
template <bool kAdd, typename In, typename Out>
Mix<kAdd, In, Out> chosen_mix() {
#ifdef __x86_64__
  if constexpr (!std::is_same_v<In, double>) {
    if (has_avx2()) return &avx2::mix<kAdd, In, Out>;
  }
#endif
  return &mix_plain<kAdd, In, Out>;
}

}  // namespace mrcnn
