#pragma once
// Results written past the caches. What is far larger than them would only push out what is still needed, and a line
// of a cache would be read from memory before it is overwritten.
#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace mrcnn {

constexpr int64_t kStreamedBytes = int64_t{8} << 20;  // from here on
constexpr int64_t kStreamedLine = 64;                 // whole lines alone are written without being read

// Writes a line; `to` begins one.
inline void stream_line(void* to, const void* from) {
#ifdef __x86_64__
  for (int k = 0; k < 4; ++k) {
    _mm_stream_ps(static_cast<float*>(to) + 4 * k, _mm_loadu_ps(static_cast<const float*>(from) + 4 * k));
  }
#else
  std::memcpy(to, from, kStreamedLine);
#endif
}

// What a thread has streamed is seen by others only after this.
inline void finish_streaming() {
#ifdef __x86_64__
  _mm_sfence();
#endif
}

}  // namespace mrcnn
