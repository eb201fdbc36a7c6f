// Masks put into the image, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/paste_masks/paste_masks.h"

extern "C" {

const char* paste_edges(const float* masks, const double* boxes, int64_t count, int64_t size, int64_t height,
                        int64_t width, double threshold, int64_t capacity, int64_t* starts, int32_t* edges) {
  std::vector<int32_t> offsets(count * width, -1);  // what is not written must not be read
  const mrcnn::PasteCall call{masks, boxes, count, size, height, width, static_cast<float>(threshold)};
  return emulated::guarded(
      [&] { return mrcnn::launch_paste_edges(call, capacity, offsets.data(), starts, edges, nullptr); });
}

const char* paste_dense(const float* masks, const double* boxes, int64_t count, int64_t size, int64_t height,
                        int64_t width, double threshold, bool* images) {
  const mrcnn::PasteCall call{masks, boxes, count, size, height, width, static_cast<float>(threshold)};
  return emulated::guarded([&] { return mrcnn::launch_paste_dense(call, images, nullptr); });
}

}  // extern "C"

namespace {

void run() {
  // Inside, across each border, without area, inverted, NaN, infinite, far larger than the image.
  const double inf = INFINITY, nan = NAN;
  const std::vector<double> boxes = {3,   2,   20, 11,  -9, -9,  4, 5, 25, 9, 400, 90,  5,  5,    5,
                                     9,   9,   9,  3,   3,  nan, 0, 5, 5,  0, 0,   inf, 5,  -1e9, -1e9,
                                     1e9, 1e9, 0,  -50, 30, -20, 0, 0, 1,  1, 0,   0.2, 30, .3};
  const auto count = static_cast<int64_t>(boxes.size() / 4);
  for (const int64_t size : {1, 7, 40}) {
    for (const int64_t width : {1, 31, 130}) {
      const int64_t height = 13;
      std::mt19937 random(static_cast<unsigned>(size + width));
      std::uniform_real_distribution<float> chance(0, 1);
      std::vector<float> masks(count * size * size);
      for (float& value : masks) value = chance(random);
      std::vector<int64_t> starts(count + 1);
      for (const int64_t capacity : {0, 5, 5000}) {
        std::vector<int32_t> edges(capacity);
        emulated::expect("paste_masks", paste_edges(masks.data(), boxes.data(), count, size, height, width, 0.5,
                                                    capacity, starts.data(), edges.data()));
      }
      const auto images = std::make_unique<bool[]>(count * height * width);
      emulated::expect("paste_masks_dense",
                       paste_dense(masks.data(), boxes.data(), count, size, height, width, 0.5, images.get()));
    }
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
