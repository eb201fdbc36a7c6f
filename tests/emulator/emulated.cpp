// The launchers of the CUDA kernels, run by the emulator, with a C interface for ctypes.
#include "cuda_emulator.h"
// The emulator must come first: it defines what CUDA's own headers would.
#include "../../csrc/grid_anchors/grid_anchors.h"
#include "../../csrc/nms/nms.h"
#include "../../csrc/roi_align/roi_align.h"

namespace {

std::string message;

// Turns what an emulated launch throws into text, as a launcher's own complaints are.
template <typename Launch>
const char* guarded(const Launch& launch) {
  try {
    return launch();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

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

void set_order(int order, unsigned seed) {
  emulator::machine().order = static_cast<emulator::Order>(order);
  emulator::machine().seed = seed;
}

const char* nms_float(const float* boxes, const int64_t* groups, int64_t n, double threshold, bool* keep) {
  std::vector<uint64_t> mask(mrcnn::nms_mask_words(n), ~uint64_t{0});  // what is not written must not be read
  return guarded([&] {
    return mrcnn::launch_nms<float>(boxes, groups, n, mrcnn::threshold_in<float>(threshold), mask.data(), keep,
                                    nullptr);
  });
}

const char* nms_double(const double* boxes, const int64_t* groups, int64_t n, double threshold, bool* keep) {
  std::vector<uint64_t> mask(mrcnn::nms_mask_words(n), ~uint64_t{0});
  return guarded([&] { return mrcnn::launch_nms<double>(boxes, groups, n, threshold, mask.data(), keep, nullptr); });
}

// The number of boxes is refused before any of them is read.
const char* nms_too_many(const float* boxes, int64_t n) {
  return mrcnn::launch_nms<float>(boxes, nullptr, n, 0.5f, nullptr, nullptr, nullptr);
}

const char* grid_anchors_float(const double* corners, int count, int64_t height, int64_t width, double stride_y,
                               double stride_x, double offset, float* anchors) {
  mrcnn::AnchorGrid grid{height, width, stride_y, stride_x, offset, count, {}};
  std::copy(corners, corners + 4 * count, &grid.corners[0][0]);
  return guarded([&] { return mrcnn::launch_grid_anchors<float>(grid, anchors, nullptr); });
}

const char* roi_align(int backward, int type, int levels, void** data, const int* heights, const int* widths,
                      const double* scales, int64_t images, int64_t channels, const void* regions, int64_t count,
                      void* pooled, int pooled_height, int pooled_width, int sampling_ratio, int aligned,
                      double canonical_size, int canonical_level) {
  const mrcnn::FeatureMaps maps = feature_maps(levels, data, heights, widths, scales, images, channels);
  const int minimum_level = static_cast<int>(std::lround(-std::log2(scales[0])));
  const mrcnn::Pooling pooling{pooled_height,  pooled_width,    sampling_ratio, aligned != 0,
                               canonical_size, canonical_level, minimum_level,  levels};
  const auto element = static_cast<mrcnn::ElementType>(type);
  return guarded([&] {
    return backward != 0 ? mrcnn::launch_roi_align_backward(element, maps, pooling, regions, count, pooled, nullptr)
                         : mrcnn::launch_roi_align(element, maps, pooling, regions, count, pooled, nullptr);
  });
}

}  // extern "C"
