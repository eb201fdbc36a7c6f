// Soft-NMS, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/soft_nms/soft_nms.h"

namespace {

// `order` and `groups` as the launcher wants them: the boxes of a group together.
template <typename T>
const char* run_soft_nms(const T* boxes, const T* scores, const int64_t* order, const int64_t* groups, int64_t n,
                         int64_t method, double iou_threshold, double sigma, double score_threshold, T* result) {
  const mrcnn::SoftNms<T> rule{static_cast<mrcnn::Decay>(method), mrcnn::threshold_in<T>(iou_threshold),
                               static_cast<T>(sigma), static_cast<T>(score_threshold)};
  std::vector<T> live(n, T(NAN));
  return emulated::guarded(
      [&] { return mrcnn::launch_soft_nms<T>(boxes, scores, order, groups, n, rule, live.data(), result, nullptr); });
}

}  // namespace

extern "C" {

const char* soft_nms_float(const float* boxes, const float* scores, const int64_t* order, const int64_t* groups,
                           int64_t n, int64_t method, double iou_threshold, double sigma, double score_threshold,
                           float* result) {
  return run_soft_nms(boxes, scores, order, groups, n, method, iou_threshold, sigma, score_threshold, result);
}

const char* soft_nms_double(const double* boxes, const double* scores, const int64_t* order, const int64_t* groups,
                            int64_t n, int64_t method, double iou_threshold, double sigma, double score_threshold,
                            double* result) {
  return run_soft_nms(boxes, scores, order, groups, n, method, iou_threshold, sigma, score_threshold, result);
}

}  // extern "C"

namespace {

void run() {
  for (const int64_t n : {1, 33, 140}) {
    std::mt19937 random(static_cast<unsigned>(n));
    std::uniform_real_distribution<float> place(0, 60), side(1, 40), score(0, 1);
    std::vector<float> boxes, scores, result(n);
    std::vector<int64_t> order, groups;
    for (int64_t i = 0; i < n; ++i) {
      const float x = place(random), y = place(random);
      boxes.insert(boxes.end(), {x, y, x + side(random), y + side(random)});
      scores.push_back(score(random));
      order.push_back(n - 1 - i);
      groups.push_back(i / 30);
    }
    boxes.shrink_to_fit();
    scores.shrink_to_fit();
    order.shrink_to_fit();
    groups.shrink_to_fit();
    for (const int64_t method : {0, 1, 2}) {
      emulated::expect("soft_nms", soft_nms_float(boxes.data(), scores.data(), nullptr, nullptr, n, method, 0.3, 0.5,
                                                  0.01, result.data()));
      emulated::expect("soft_nms with groups", soft_nms_float(boxes.data(), scores.data(), order.data(), groups.data(),
                                                              n, method, 0.3, 0.5, 0.01, result.data()));
    }
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
