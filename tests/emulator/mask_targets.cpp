// Masks cut to regions, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/mask_targets/mask_targets.h"

extern "C" {

// `counts`: points, polygons, runs, objects, regions, the largest height and width.
const char* mask_targets(const double* points, const int64_t* polygons, const int32_t* ends, const int64_t* objects,
                         const int64_t* index, const double* boxes, const int64_t* counts, const double* matrix,
                         const double* inverse, int64_t size, int64_t sampling_ratio, int64_t aligned,
                         int64_t thresholded, double threshold, float* targets) {
  mrcnn::TargetCall call{};
  call.masks = {points, polygons, ends, objects, counts[0], counts[1], counts[2], counts[3], counts[5], counts[6]};
  call.index = index;
  call.boxes = boxes;
  call.regions = counts[4];
  call.size = size;
  call.sampling_ratio = sampling_ratio;
  call.aligned = aligned != 0;
  call.thresholded = thresholded != 0;
  call.threshold = static_cast<float>(threshold);
  std::copy(matrix, matrix + 6, call.matrix);
  std::copy(inverse, inverse + 6, call.inverse);
  const int64_t regions = counts[2] > 0 ? counts[4] : 0;
  std::vector<double> tables(regions * mrcnn::target_table(call), NAN);  // what is not written must not be read
  std::vector<int32_t> ranges(regions * 4 * size, -1);
  return emulated::guarded(
      [&] { return mrcnn::launch_mask_targets(call, tables.data(), ranges.data(), targets, nullptr); });
}

}  // extern "C"

namespace {

void run() {
  const double inf = INFINITY, nan = NAN;
  const std::vector<double> points = {2, 1, 30, 5, 11, 28, -4, 9, 1e30, 1e30, -1e30, 4, 5, 5, 5, 5, 5, 5};
  const std::vector<int64_t> polygons = {0, 4, 6, 9};
  // A mask of 6 x 5 pixels, one of 1 x 1, and one whose runs do not reach its end, as no packing gives it.
  const std::vector<int32_t> ends = {4, 9, 9, 13, 30, 0, 1, 3};
  // The last three objects lead outside of what there is.
  const std::vector<int64_t> objects = {0,  3, -1, 0, 0, 5, 6, 5, 5,  7, 1, 1, 7, 8, 6, 5, 1, 1,
                                        -1, 0, 8,  8, 0, 0, 0, 4, -1, 0, 0, 9, 6, 5, 0, 5, 7, 5};
  const std::vector<double> boxes = {3, 2, 20,  11, -9, -9, 4, 5, 5,   5, 5, 9, 9,  9,
                                     3, 3, nan, 0,  5,  5,  0, 0, inf, 5, 0, 0, 40, 4};
  std::vector<int64_t> index;
  std::vector<double> all;
  for (int64_t object = -1; object <= static_cast<int64_t>(objects.size() / 4); ++object) {
    for (size_t box = 0; box < boxes.size(); box += 4) {
      index.push_back(object);
      all.insert(all.end(), &boxes[box], &boxes[box] + 4);
    }
  }
  all.shrink_to_fit();
  index.shrink_to_fit();
  const auto regions = static_cast<int64_t>(index.size());
  const int64_t counts[] = {9, 3, 8, static_cast<int64_t>(objects.size() / 4), regions, 6, 5};
  const double straight[] = {-1.5, 0, 30, 0, 0.5, 2}, back[] = {-1 / 1.5, 0, 20, 0, 2, -4};
  const double turned[] = {0, 1, 0, -1, 0, 30}, turned_back[] = {0, -1, 30, 1, 0, 0};
  for (const int64_t size : {1, 7, 40}) {
    for (const int64_t ratio : {0, 3}) {
      std::vector<float> targets(regions * size * size);
      emulated::expect("mask_targets",
                       mask_targets(points.data(), polygons.data(), ends.data(), objects.data(), index.data(),
                                    all.data(), counts, straight, back, size, ratio, 1, 1, 0.5, targets.data()));
      emulated::expect("mask_targets, turned",
                       mask_targets(points.data(), polygons.data(), ends.data(), objects.data(), index.data(),
                                    all.data(), counts, turned, turned_back, size, ratio, 0, 0, 0, targets.data()));
    }
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
