#pragma once
// What the operators that pool feature maps at boxes have in common on the host: checks, memory formats, and the
// regions of each image.
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "common.h"
#include "roi_align/roi_align.h"

namespace mrcnn {

inline void check_map(const char* op, const Tensor& map) {
  check(map.dim() == 4, op, ": input must be [N, C, H, W], got ", ShapeOf{map});
  check(is_floating(map.scalar_type()), op, ": input must be floating point, got ", map.scalar_type());
  check(map.size(2) < (1 << 24) && map.size(3) < (1 << 24) && map.size(2) * map.size(3) < (int64_t{1} << 31), op,
        ": input is too large: ", ShapeOf{map});
}

inline void check_pooling(const char* op, int64_t height, int64_t width, double spatial_scale) {
  check(height > 0 && width > 0 && height < 32768 && width < 32768, op, ": output_size must be positive, got ", height,
        " x ", width);
  check(spatial_scale > 0 && std::isfinite(spatial_scale), op, ": spatial_scale must be positive, got ", spatial_scale);
}

inline void check_rois(const char* op, const Tensor& rois, const Tensor& map) {
  check(rois.dim() == 2 && rois.size(1) == 5, op, ": boxes must be [R, 5] with the image index first, got ",
        ShapeOf{rois});
  check(is_floating(rois.scalar_type()), op, ": boxes must be floating point, got ", rois.scalar_type());
  check(rois.is_cuda() == map.is_cuda() && rois.get_device_index() == map.get_device_index(), op,
        ": boxes must be on the device of the input");
}

// Box coordinates are computed in float32, or in float64 for float64 maps: half precision would move boxes by pixels.
inline Tensor comparable_rois(const Tensor& rois, ScalarType map) {
  return converted(rois, map == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

inline Tensor allocated(const Tensor& like, ScalarType type, int64_t n, int64_t channels, int64_t height, int64_t width,
                        bool channels_last) {
  const int64_t sizes[] = {n, channels, height, width};
  Tensor tensor = torch::stable::empty({sizes, 4}, type, std::nullopt, like.device(), std::nullopt,
                                       channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  prefer_huge_pages(tensor);
  return tensor;
}

inline ElementType element_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return ElementType::kDouble;
    case ScalarType::Half:
      return ElementType::kHalf;
    case ScalarType::BFloat16:
      return ElementType::kBFloat16;
    default:
      return ElementType::kFloat;
  }
}

// The regions of each image, in the order of the call: those of image i are order[starts[i]] to order[starts[i + 1]].
struct ByImage {
  std::vector<int64_t> order, starts;
};

// `rois` is [count, 5]: image, x1, y1, x2, y2. Raises if an image is not there.
template <typename T>
ByImage by_image(const char* op, const T* rois, int64_t count, int64_t images) {
  ByImage regions{std::vector<int64_t>(count), std::vector<int64_t>(images + 1, 0)};
  for (int64_t r = 0; r < count; ++r) {
    const T image = rois[5 * r];
    check(image >= T(0) && image < T(images), op, ": boxes[", r, "] lies on image ", image, ", but the input holds ",
          images);
    ++regions.starts[static_cast<int64_t>(image) + 1];
  }
  for (int64_t i = 0; i < images; ++i) regions.starts[i + 1] += regions.starts[i];
  std::vector<int64_t> next(regions.starts.begin(), regions.starts.end() - 1);
  for (int64_t r = 0; r < count; ++r) regions.order[next[static_cast<int64_t>(rois[5 * r])]++] = r;
  return regions;
}

}  // namespace mrcnn
