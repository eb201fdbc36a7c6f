#pragma once
// What the emulated ps_roi_align and ps_roi_pool have in common.
#include "../../csrc/ps_roi_align/position_sensitive.h"
#include "emulated.h"

namespace emulated {

// sizes: images, channels out, height, width, bins along y, along x, sampling ratio, channels last, regions.
template <mrcnn::Bins kBins>
const char* position_sensitive(int64_t backward, int64_t type, const int64_t* sizes, double scale, void* map,
                               const void* regions, void* pooled) {
  const int64_t images = sizes[0], out = sizes[1], pixels = sizes[2] * sizes[3], bins = sizes[4] * sizes[5];
  const bool channels_last = sizes[7] != 0;
  const mrcnn::PositionSensitiveCall call{images,
                                          out,
                                          sizes[8],
                                          static_cast<int>(sizes[2]),
                                          static_cast<int>(sizes[3]),
                                          static_cast<int>(sizes[4]),
                                          static_cast<int>(sizes[5]),
                                          scale,
                                          static_cast<int>(sizes[6]),
                                          out * bins * pixels,
                                          channels_last ? 1 : pixels,
                                          channels_last ? out * bins : 1,
                                          out * bins,
                                          channels_last ? 1 : bins,
                                          channels_last ? out : 1};
  const auto element = static_cast<mrcnn::ElementType>(type);
  return guarded([&] {
    return backward != 0
               ? mrcnn::launch_position_sensitive_backward<kBins>(element, call, pooled, regions, map, nullptr)
               : mrcnn::launch_position_sensitive<kBins>(element, call, map, regions, pooled, nullptr);
  });
}

using PositionSensitive = const char* (*)(int64_t, int64_t, const int64_t*, double, void*, const void*, void*);

// In buffers that end where the data does.
inline void run_position_sensitive(PositionSensitive function) {
  const float inf = INFINITY, nan = NAN;
  const std::vector<float> regions = {0, 2,  3,   30, 40, 1,     -20, -20,  10, 10,   0,    90,  90,  200, 200, 1, 5,
                                      5, 5,  5,   0,  9,  9,     3,   3,    1,  -500, -500, 500, 500, 7,   0,   0, 5,
                                      5, -1, 0,   0,  5,  5,     nan, 0,    0,  5,    5,    0,   nan, 0,   5,   5, 1,
                                      0, 0,  inf, 5,  0,  -1e9f, 2,   1e9f, 8,  0,    0,    0,   64,  64};
  const std::vector<double> wide(regions.begin(), regions.end());
  const auto count = static_cast<int64_t>(regions.size() / 5);
  const int64_t bytes[] = {4, 8, 2, 2};
  for (const int64_t type : {0, 1, 2, 3}) {
    for (const int64_t channels_last : {0, 1}) {
      for (const int64_t ratio : {0, 2}) {
        for (const int64_t height : {0, 1, 17}) {
          const int64_t sizes[] = {2, 5, height, 16, 3, 2, ratio, channels_last, count};
          std::vector<unsigned char> map(2 * 30 * height * 16 * bytes[type]), pooled(count * 30 * bytes[type]);
          const void* coordinates = type == 1 ? static_cast<const void*>(wide.data()) : regions.data();
          for (const int64_t backward : {0, 1}) {
            expect("position-sensitive pooling",
                   function(backward, type, sizes, 0.25, map.data(), coordinates, pooled.data()));
          }
        }
      }
    }
  }
}

}  // namespace emulated
