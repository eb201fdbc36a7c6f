// Matching of anchors, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/match_anchors/match_anchors.h"

namespace {

template <typename T>
const char* match(const T* anchors, int64_t count, const T* boxes, int64_t objects, const T* crowds,
                  int64_t crowd_count, double low, double high, double crowd_coverage, int64_t allow_low_quality,
                  int64_t* matched) {
  const mrcnn::MatchRule<T> rule{static_cast<T>(low), static_cast<T>(high), static_cast<T>(crowd_coverage),
                                 allow_low_quality != 0};
  std::vector<int32_t> best(rule.allow_low_quality ? count : 0, -9);  // what is not written must not be read
  std::vector<T> tops(rule.allow_low_quality ? objects : 0);
  return emulated::guarded([&] {
    return mrcnn::launch_match_anchors<T>(anchors, count, boxes, objects, crowds, crowd_count, rule, best.data(),
                                          tops.data(), matched, nullptr);
  });
}

}  // namespace

extern "C" {

const char* match_anchors_float(const float* anchors, int64_t count, const float* boxes, int64_t objects,
                                const float* crowds, int64_t crowd_count, double low, double high,
                                double crowd_coverage, int64_t allow_low_quality, int64_t* matched) {
  return match(anchors, count, boxes, objects, crowds, crowd_count, low, high, crowd_coverage, allow_low_quality,
               matched);
}

const char* match_anchors_double(const double* anchors, int64_t count, const double* boxes, int64_t objects,
                                 const double* crowds, int64_t crowd_count, double low, double high,
                                 double crowd_coverage, int64_t allow_low_quality, int64_t* matched) {
  return match(anchors, count, boxes, objects, crowds, crowd_count, low, high, crowd_coverage, allow_low_quality,
               matched);
}

}  // extern "C"

namespace {

void run() {
  for (const int64_t count : {1, 31, 128, 200}) {
    for (const int64_t objects : {0, 1, 33, 70}) {
      std::mt19937 random(static_cast<unsigned>(count + objects));
      std::uniform_real_distribution<float> place(0, 100), side(1, 40);
      const auto some_boxes = [&](int64_t n) {
        std::vector<float> boxes;
        for (int64_t i = 0; i < n; ++i) {
          const float x = place(random), y = place(random);
          boxes.insert(boxes.end(), {x, y, x + side(random), y + side(random)});
        }
        boxes.shrink_to_fit();
        return boxes;
      };
      const std::vector<float> anchors = some_boxes(count), boxes = some_boxes(objects), crowds = some_boxes(3);
      std::vector<int64_t> matched(count);
      for (const int64_t allow_low_quality : {0, 1}) {
        emulated::expect("match_anchors",
                         match_anchors_float(anchors.data(), count, boxes.data(), objects, crowds.data(), 3, 0.3, 0.7,
                                             0.7, allow_low_quality, matched.data()));
      }
    }
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
