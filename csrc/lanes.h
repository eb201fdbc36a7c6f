#pragma once
// A few channels of a feature map side by side, pixel by pixel, whatever the map's memory format: what one processor
// vector works on at a time, small enough to stay in the cache while all regions read from it or add to it.
//
//   contiguous map    channel 0: p0 p1 p2 ...   channel 1: p0 p1 p2 ...        \    lanes   p0: c0 c1 c2 ...
//   channels last     p0: c0 c1 c2 c3 c4 ...   p1: c0 c1 c2 c3 c4 ...          /            p1: c0 c1 c2 ...
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "avx2.h"
#include "common.h"

namespace mrcnn {

// The compiler's own vectors: the plain build and the one for AVX2 do the same operations and give the same bits.
template <typename A>
struct LaneVector {
  static constexpr int kSize = 32 / sizeof(A);
  typedef A type __attribute__((vector_size(32)));
};

// Distances in elements between neighbouring pixels and between the channels that become neighbouring lanes.
struct LaneStrides {
  int64_t pixel, lane;
};

constexpr int kPixelsAtOnce = 64;  // pieces of rows that are turned into lanes, or back, within the innermost cache

// to[c * to_stride + r] = from[r * from_stride + c] for r < rows, c < columns.
template <typename A>
void transpose_plain(const A* from, int64_t from_stride, int rows, int columns, A* to, int64_t to_stride) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

inline void transpose_eight(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m256 row[8], pair[8], quad[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(from + i * from_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
    quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
  }
}

// For numbers of four bytes, which are moved and not looked at. The last square of each side is moved back over the one
// before and written twice.
inline void transpose(const float* from, int64_t from_stride, int rows, int columns, float* to, int64_t to_stride) {
  if (rows < 8 || columns < 8) {
    transpose_plain(from, from_stride, rows, columns, to, to_stride);
    return;
  }
  for (int r = 0; r < rows; r += 8) {
    const int row = std::min(r, rows - 8);
    for (int c = 0; c < columns; c += 8) {
      const int column = std::min(c, columns - 8);
      transpose_eight(from + row * from_stride + column, from_stride, to + column * to_stride + row, to_stride);
    }
  }
}

#pragma GCC pop_options

}  // namespace avx2
#endif

template <typename A>
void transpose(const A* from, int64_t from_stride, int rows, int columns, A* to, int64_t to_stride) {
#ifdef __x86_64__
  if constexpr (sizeof(A) == 4) {
    if (has_avx2()) {
      avx2::transpose(reinterpret_cast<const float*>(from), from_stride, rows, columns, reinterpret_cast<float*>(to),
                      to_stride);
      return;
    }
  }
#endif
  transpose_plain(from, from_stride, rows, columns, to, to_stride);
}

// Numbers as they are computed with: half precision becomes float32, everything else (A is T) stays.
template <typename T, typename A>
void widen_or_copy(const T* from, int64_t count, A* to) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(to, from, count * sizeof(T));
  } else {
    chosen_widen<T>()(from, count, to);
  }
}

template <typename A, typename T>
void narrow_or_copy(const A* from, int64_t count, T* to) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(to, from, count * sizeof(T));
  } else {
    chosen_narrow<T>()(from, count, to);
  }
}

// kLanes channels of `count` pixels, as A; lanes from `used` on become zero.
template <int kLanes, typename T, typename A>
void gather_lanes(const T* map, LaneStrides strides, int64_t count, int used, A* lanes) {
  if (used < kLanes) std::fill_n(lanes, count * kLanes, A(0));
  if (strides.pixel == 1) {
    [[maybe_unused]] A rows[kLanes * kPixelsAtOnce];
    for (int64_t first = 0; first < count; first += kPixelsAtOnce) {
      const int n = static_cast<int>(std::min<int64_t>(kPixelsAtOnce, count - first));
      if constexpr (std::is_same_v<T, A>) {
        transpose(map + first, strides.lane, used, n, lanes + first * kLanes, kLanes);
      } else {
        for (int k = 0; k < used; ++k) widen_or_copy(map + k * strides.lane + first, n, rows + k * kPixelsAtOnce);
        transpose(rows, kPixelsAtOnce, used, n, lanes + first * kLanes, kLanes);
      }
    }
    return;
  }
  for (int64_t p = 0; p < count; ++p, lanes += kLanes) {
    const T* from = map + p * strides.pixel;
    if (strides.lane == 1) {
      widen_or_copy(from, used, lanes);
    } else {
      for (int k = 0; k < used; ++k) lanes[k] = static_cast<A>(from[k * strides.lane]);
    }
  }
}

// The way back, each number rounded once.
template <int kLanes, typename A, typename T>
void scatter_lanes(const A* lanes, LaneStrides strides, int64_t count, int used, T* map) {
  if (strides.pixel == 1) {
    [[maybe_unused]] A rows[kLanes * kPixelsAtOnce];
    for (int64_t first = 0; first < count; first += kPixelsAtOnce) {
      const int n = static_cast<int>(std::min<int64_t>(kPixelsAtOnce, count - first));
      if constexpr (std::is_same_v<T, A>) {
        transpose(lanes + first * kLanes, kLanes, n, used, map + first, strides.lane);
      } else {
        transpose(lanes + first * kLanes, kLanes, n, used, rows, kPixelsAtOnce);
        for (int k = 0; k < used; ++k) narrow_or_copy(rows + k * kPixelsAtOnce, n, map + k * strides.lane + first);
      }
    }
    return;
  }
  for (int64_t p = 0; p < count; ++p, lanes += kLanes) {
    T* to = map + p * strides.pixel;
    if (strides.lane == 1) {
      narrow_or_copy(lanes, used, to);
    } else {
      for (int k = 0; k < used; ++k) to[k * strides.lane] = static_cast<T>(lanes[k]);
    }
  }
}

}  // namespace mrcnn
