// Non-maximum suppression, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/nms/nms.h"

extern "C" {

// `mask_words` bounds the mask, so that few boxes already take several passes.
const char* nms_float(const float* boxes, const int64_t* groups, int64_t n, double threshold, bool* keep,
                      int64_t mask_words) {
  // what is not written must not be read
  std::vector<uint64_t> scratch(mrcnn::nms_scratch_words(n, mask_words), ~uint64_t{0});
  return emulated::guarded([&] {
    return mrcnn::launch_nms<float>(boxes, groups, n, mrcnn::threshold_in<float>(threshold), scratch.data(), keep,
                                    nullptr, mask_words);
  });
}

const char* nms_double(const double* boxes, const int64_t* groups, int64_t n, double threshold, bool* keep,
                       int64_t mask_words) {
  std::vector<uint64_t> scratch(mrcnn::nms_scratch_words(n, mask_words), ~uint64_t{0});
  return emulated::guarded([&] {
    return mrcnn::launch_nms<double>(boxes, groups, n, threshold, scratch.data(), keep, nullptr, mask_words);
  });
}

// The number of boxes is refused before any of them is read.
const char* nms_too_many(const float* boxes, int64_t n) {
  return mrcnn::launch_nms<float>(boxes, nullptr, n, 0.5f, nullptr, nullptr, nullptr);
}

int64_t nms_scratch(int64_t n) {
  return mrcnn::nms_scratch_words(n);
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
    for (const int64_t mask_words : {int64_t{1}, mrcnn::kNmsMaskWords}) {
      emulated::expect("nms", nms_float(boxes.data(), nullptr, n, 0.5, keep.get(), mask_words));
      emulated::expect("nms with groups", nms_float(boxes.data(), groups.data(), n, 0.5, keep.get(), mask_words));
    }
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
