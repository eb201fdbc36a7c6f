// The CUDA kernels under AddressSanitizer, on buffers that end exactly where the data does. It judges accesses; the
// values are compared with the CPU's in tests/ops/test_emulator.py. Arguments: nothing, or "plant" to write out of
// bounds.
#include <cstdio>
#include <memory>
#include <random>

#include "cuda_emulator.h"

extern "C" {
void set_order(int, unsigned);
const char* nms_float(const float*, const int64_t*, int64_t, double, bool*);
const char* grid_anchors_float(const double*, int, int64_t, int64_t, double, double, double, float*);
const char* roi_align(int, int, int, void**, const int*, const int*, const double*, int64_t, int64_t, const void*,
                      int64_t, void*, int, int, int, int, double, int);
void run_write(int64_t, int);
}

namespace {

int failures = 0;

void expect(const char* what, const char* failure) {
  if (failure == nullptr) return;
  std::printf("%s: %s\n", what, failure);
  ++failures;
}

void run_nms(int64_t n) {
  std::mt19937 random(static_cast<unsigned>(n));
  std::uniform_real_distribution<float> place(0, 100), side(1, 40);
  std::vector<float> boxes;
  std::vector<int64_t> groups;
  for (int64_t i = 0; i < n; ++i) {
    const float x = place(random), y = place(random);
    boxes.insert(boxes.end(), {x, y, x + side(random), y + side(random)});
    groups.push_back(i % 3);
  }
  boxes.shrink_to_fit();
  groups.shrink_to_fit();
  const auto keep = std::make_unique<bool[]>(n);
  expect("nms", nms_float(boxes.data(), nullptr, n, 0.5, keep.get()));
  expect("nms with groups", nms_float(boxes.data(), groups.data(), n, 0.5, keep.get()));
}

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
  for (const int backward : {0, 1}) {
    expect(backward != 0 ? "roi_align backward" : "roi_align",
           roi_align(backward, type, 3, data, heights, widths, scales, images, channels, coordinates, count,
                     pooled.data(), pooled_height, pooled_width, sampling_ratio, aligned, 60, 3));
  }
}

}  // namespace

int main(int argc, char**) {
  if (argc > 1) {
    run_write(8, 8);
    return 0;
  }
  for (const int order : {0, 1, 2, 3}) {
    set_order(order, 7);
    for (const int64_t n : {1, 63, 64, 65, 130}) run_nms(n);
  }
  const double corners[] = {-1, -1, 1, 1, -2, -1, 2, 1};
  for (const int64_t width : {1, 31, 64}) {
    std::vector<float> anchors(3 * width * 2 * 4);
    expect("grid_anchors", grid_anchors_float(corners, 2, 3, width, 8, 8, 0.5, anchors.data()));
  }
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
  std::printf(failures == 0 ? "clean\n" : "%d failures\n", failures);
  return failures != 0;
}
