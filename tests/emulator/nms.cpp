// Non-maximum suppression, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/nms/nms.h"

extern "C" {

const char* nms_float(const float* boxes, const int64_t* groups, int64_t n, double threshold, bool* keep) {
  std::vector<uint64_t> mask(mrcnn::nms_mask_words(n), ~uint64_t{0});  // what is not written must not be read
  return emulated::guarded([&] {
    return mrcnn::launch_nms<float>(boxes, groups, n, mrcnn::threshold_in<float>(threshold), mask.data(), keep,
                                    nullptr);
  });
}

const char* nms_double(const double* boxes, const int64_t* groups, int64_t n, double threshold, bool* keep) {
  std::vector<uint64_t> mask(mrcnn::nms_mask_words(n), ~uint64_t{0});
  return emulated::guarded(
      [&] { return mrcnn::launch_nms<double>(boxes, groups, n, threshold, mask.data(), keep, nullptr); });
}

// The number of boxes is refused before any of them is read.
const char* nms_too_many(const float* boxes, int64_t n) {
  return mrcnn::launch_nms<float>(boxes, nullptr, n, 0.5f, nullptr, nullptr, nullptr);
}

}  // extern "C"

namespace {

void run() {
  for (const int64_t n : {1, 63, 64, 65, 130}) {
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
    emulated::expect("nms", nms_float(boxes.data(), nullptr, n, 0.5, keep.get()));
    emulated::expect("nms with groups", nms_float(boxes.data(), groups.data(), n, 0.5, keep.get()));
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
