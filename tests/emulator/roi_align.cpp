// RoIAlign, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/roi_align/roi_align.h"

namespace {

mrcnn::FeatureMaps feature_maps(int levels, void** data, const int* heights, const int* widths, const double* scales,
                                int64_t images, int64_t channels) {
  mrcnn::FeatureMaps maps{};
  for (int i = 0; i < levels; ++i) {
    maps.data[i] = data[i];
    maps.height[i] = heights[i];
    maps.width[i] = widths[i];
    maps.scale[i] = scales[i];
  }
  maps.images = images;
  maps.channels = channels;
  return maps;
}

}  // namespace

extern "C" {

// backward: 0 no, 1 yes, 2 with atomic additions.
const char* roi_align(int backward, int type, int levels, void** data, const int* heights, const int* widths,
                      const double* scales, int64_t images, int64_t channels, const void* regions, int64_t count,
                      void* pooled, int pooled_height, int pooled_width, int sampling_ratio, int aligned,
                      double canonical_size, int canonical_level) {
  const mrcnn::FeatureMaps maps = feature_maps(levels, data, heights, widths, scales, images, channels);
  const int minimum_level = static_cast<int>(std::lround(-std::log2(scales[0])));
  const mrcnn::Pooling pooling{pooled_height,  pooled_width,    sampling_ratio, aligned != 0,
                               canonical_size, canonical_level, minimum_level,  levels};
  const auto element = static_cast<mrcnn::ElementType>(type);
  // What the first backward kernel leaves out, the second must not read.
  std::vector<unsigned char> workspace(backward == 1 ? mrcnn::roi_align_workspace(maps, pooling, count) : 0, 0xff);
  return emulated::guarded([&] {
    switch (backward) {
      case 0:
        return mrcnn::launch_roi_align(element, maps, pooling, regions, count, pooled, nullptr);
      case 1:
        return mrcnn::launch_roi_align_backward(element, maps, pooling, regions, count, pooled, workspace.data(),
                                                nullptr);
      default:
        return mrcnn::launch_roi_align_backward_atomic(maps, pooling, static_cast<const float*>(regions), count,
                                                       static_cast<const float*>(pooled), nullptr);
    }
  });
}

}  // extern "C"

namespace {

// Regions inside, outside, across the border, without area, inverted, larger than the maps, of another image, NaN.
std::vector<float> odd_regions() {
  const float inf = INFINITY, nan = NAN;
  return {0, 2, 3,   30, 40,   1,    -20, -20, 10, 10,  0, 90, 90,    200, 200,  1, 5, 5, 5,   5,  0, 9,
          9, 3, 3,   1,  -500, -500, 500, 500, 7,  0,   0, 5,  5,     -1,  0,    0, 5, 5, nan, 0,  0, 5,
          5, 0, nan, 0,  5,    5,    1,   0,   0,  inf, 5, 0,  -1e9f, 2,   1e9f, 8, 0, 0, 0,   64, 64};
}

void run_roi_align(int type, size_t bytes, int64_t channels, int pooled_height, int pooled_width, int sampling_ratio,
                   int aligned) {
  const int heights[] = {17, 9, 5}, widths[] = {19, 10, 5};
  const double scales[] = {0.25, 0.125, 0.0625};
  const int64_t images = 2;
  std::vector<float> regions = odd_regions();
  std::vector<double> wide(regions.begin(), regions.end());
  const auto count = static_cast<int64_t>(regions.size() / 5);
  std::vector<std::vector<unsigned char>> maps;
  void* data[3];
  for (int i = 0; i < 3; ++i) {
    maps.emplace_back(images * channels * heights[i] * widths[i] * bytes);
    data[i] = maps.back().data();
  }
  std::vector<unsigned char> pooled(count * channels * pooled_height * pooled_width * bytes);
  const void* coordinates = type == 1 ? static_cast<const void*>(wide.data()) : regions.data();
  for (const int backward : {0, 1, 2}) {
    if (backward == 2 && type != 0) continue;
    emulated::expect(backward == 0   ? "roi_align"
                     : backward == 1 ? "roi_align backward"
                                     : "roi_align backward, atomic",
                     roi_align(backward, type, 3, data, heights, widths, scales, images, channels, coordinates, count,
                               pooled.data(), pooled_height, pooled_width, sampling_ratio, aligned, 60, 3));
  }
}

void run() {
  for (const int aligned : {0, 1}) {
    for (const int sampling_ratio : {0, 2}) {
      run_roi_align(0, 4, 4, 3, 2, sampling_ratio, aligned);
      run_roi_align(0, 4, 5, 2, 3, sampling_ratio, aligned);
      run_roi_align(0, 4, 132, 1, 2, sampling_ratio, aligned);
      run_roi_align(1, 8, 3, 2, 2, sampling_ratio, aligned);
      run_roi_align(2, 2, 8, 2, 2, sampling_ratio, aligned);
      run_roi_align(3, 2, 264, 1, 1, sampling_ratio, aligned);
    }
  }
  run_roi_align(0, 4, 4, 1, 200, 1, 0);  // more bins than the table of taps holds
}

const emulated::Sanitized sanitized(run);

}  // namespace
