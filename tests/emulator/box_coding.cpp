// Boxes as deltas to anchors, and back, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/box_coding/box_coding.h"

namespace {

enum Step { kEncode, kEncodeBackward, kDecode, kDecodeBackward, kClip, kClipBackward, kSteps };

// For clipping, the first two weights are height and width.
template <typename T>
const char* code(int64_t step, const T* gradient, const T* values, const T* anchors, int64_t rows, int64_t anchor_count,
                 int64_t repeats, const double* weights, double clamp, T* out, T* to_anchors) {
  mrcnn::Coding<T> coding{{}, static_cast<T>(clamp), anchor_count, repeats};
  for (int k = 0; k < 4; ++k) coding.weights[k] = static_cast<T>(weights[k]);
  return emulated::guarded([&]() -> const char* {
    switch (step) {
      case kEncode:
        return mrcnn::launch_encode(values, anchors, rows, coding, out, nullptr);
      case kEncodeBackward:
        return mrcnn::launch_encode_backward(gradient, values, anchors, rows, coding, out, to_anchors, nullptr);
      case kDecode:
        return mrcnn::launch_decode(values, anchors, rows, coding, out, nullptr);
      case kDecodeBackward:
        return mrcnn::launch_decode_backward(gradient, values, anchors, rows, coding, out, to_anchors, nullptr);
      case kClip:
        return mrcnn::launch_clip(values, rows, coding.weights[0], coding.weights[1], out, nullptr);
      default:
        return mrcnn::launch_clip_backward(gradient, values, rows, coding.weights[0], coding.weights[1], out, nullptr);
    }
  });
}

}  // namespace

extern "C" {

const char* box_coding_float(int64_t step, const float* gradient, const float* values, const float* anchors,
                             int64_t rows, int64_t anchor_count, int64_t repeats, const double* weights, double clamp,
                             float* out, float* to_anchors) {
  return code(step, gradient, values, anchors, rows, anchor_count, repeats, weights, clamp, out, to_anchors);
}

const char* box_coding_double(int64_t step, const double* gradient, const double* values, const double* anchors,
                              int64_t rows, int64_t anchor_count, int64_t repeats, const double* weights, double clamp,
                              double* out, double* to_anchors) {
  return code(step, gradient, values, anchors, rows, anchor_count, repeats, weights, clamp, out, to_anchors);
}

}  // extern "C"

namespace {

void run() {
  const double weights[] = {10, 10, 5, 5};
  for (const int64_t anchor_count : {1, 127, 130}) {
    std::vector<float> anchors;
    for (int64_t i = 0; i < anchor_count; ++i) anchors.insert(anchors.end(), {0, 0, 4, 8});
    anchors.shrink_to_fit();
    for (const int64_t repeats : {1, 3}) {
      const int64_t rows = 2 * anchor_count * repeats;
      const std::vector<float> values(4 * rows, 1.0f), gradient(4 * rows, 1.0f);
      for (int64_t step = 0; step < kSteps; ++step) {
        // Encoding takes one anchor for each box, and gives each a gradient.
        const bool encodes = step == kEncode || step == kEncodeBackward;
        const std::vector<float> own(4 * rows, 2.0f);
        std::vector<float> out(4 * rows), to_anchors(encodes ? 4 * rows : 4 * anchor_count);
        emulated::expect("box_coding",
                         box_coding_float(step, gradient.data(), values.data(), encodes ? own.data() : anchors.data(),
                                          rows, anchor_count, repeats, weights, 4.0, out.data(), to_anchors.data()));
      }
    }
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
