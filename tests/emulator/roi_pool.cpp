// RoI max pooling, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/roi_pool/roi_pool.h"

extern "C" {

const char* roi_pool(int64_t backward, int64_t type, int64_t images, int64_t channels, int64_t height, int64_t width,
                     int64_t pooled_height, int64_t pooled_width, double scale, void* map, const void* regions,
                     int64_t count, void* pooled, int32_t* places) {
  const mrcnn::RoiPoolCall call{images,
                                channels,
                                count,
                                static_cast<int>(height),
                                static_cast<int>(width),
                                static_cast<int>(pooled_height),
                                static_cast<int>(pooled_width),
                                scale};
  const auto element = static_cast<mrcnn::ElementType>(type);
  return emulated::guarded([&] {
    return backward != 0 ? mrcnn::launch_roi_pool_backward(element, call, pooled, regions, places, map, nullptr)
                         : mrcnn::launch_roi_pool(element, call, map, regions, pooled, places, nullptr);
  });
}

}  // extern "C"

namespace {

// Regions inside, outside, across the border, without area, inverted, larger than the map, of another image, NaN.
std::vector<float> odd_regions() {
  const float inf = INFINITY, nan = NAN;
  return {0, 2, 3,   30, 40,   1,    -20, -20, 10, 10,  0, 90, 90,    200, 200,  1, 5, 5, 5,   5,  0, 9,
          9, 3, 3,   1,  -500, -500, 500, 500, 7,  0,   0, 5,  5,     -1,  0,    0, 5, 5, nan, 0,  0, 5,
          5, 0, nan, 0,  5,    5,    1,   0,   0,  inf, 5, 0,  -1e9f, 2,   1e9f, 8, 0, 0, 0,   64, 64};
}

template <typename T>
void run_type(int64_t type, int64_t channels, int64_t height, int64_t width, int64_t bins) {
  const std::vector<float> regions = odd_regions();
  const std::vector<double> wide(regions.begin(), regions.end());
  const void* coordinates = type == 1 ? static_cast<const void*>(wide.data()) : regions.data();
  const auto count = static_cast<int64_t>(regions.size() / 5);
  std::vector<T> map(2 * channels * height * width), pooled(count * channels * bins * 2);
  std::vector<int32_t> places(pooled.size());
  for (const int64_t backward : {0, 1}) {
    emulated::expect("roi_pool", roi_pool(backward, type, 2, channels, height, width, bins, 2, 0.25, map.data(),
                                          coordinates, count, pooled.data(), places.data()));
  }
  emulated::expect("roi_pool without places", roi_pool(0, type, 2, channels, height, width, bins, 2, 0.25, map.data(),
                                                       coordinates, count, pooled.data(), nullptr));
}

void run() {
  run_type<float>(0, 5, 9, 11, 3);
  run_type<float>(0, 40, 4, 8, 1);
  run_type<float>(0, 2, 0, 5, 2);
  run_type<double>(1, 1, 17, 3, 2);
  run_type<uint16_t>(2, 33, 5, 9, 2);
  run_type<uint16_t>(3, 3, 1, 1, 4);
}

const emulated::Sanitized sanitized(run);

}  // namespace
