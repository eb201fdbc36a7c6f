// RoIAlign's gradient as other libraries make it, with atomic additions: nothing but a yardstick for the gathering
// kernel, which has to give the same bits every time and must not cost much for it.
#include "roi_align_device.h"

namespace mrcnn {
namespace {

// One block = one region; one warp = one bin after the other; one lane = kVector neighbouring channels of the bin, and
// then those 32 * kVector further on, added to all pixels under the bin.
template <int kVector>
__global__ void __launch_bounds__(kThreads)
    scatter_regions(const __grid_constant__ FeatureMaps gradients, const __grid_constant__ Pooling pooling,
                    const float* __restrict__ regions, int capacity, const float* __restrict__ pooled) {
  __shared__ RegionAxes<float> axes;
  const int64_t index = blockIdx.x;
  const BlockRegion<float> region = block_region(regions + 5 * index, gradients, pooling, capacity, &axes);
  const int64_t channels = gradients.channels, width = gradients.width[region.level];
  float* map = static_cast<float*>(gradients.data[region.level]) +
               region.image * gradients.height[region.level] * width * channels;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int bin = warp; bin < pooling.height * pooling.width; bin += kWarps) {
    const float* from = pooled + (index * pooling.height * pooling.width + bin) * channels;
    for (int64_t c = lane * kVector; c < channels; c += 32 * kVector) {
      const auto values = packet_at<kVector>(from + c);
      region.visit(pooling, bin / pooling.width, bin % pooling.width, [&](int row, int column, float weight) {
        float* pixel = map + (row * width + column) * channels + c;
#pragma unroll
        for (int k = 0; k < kVector; ++k) atomicAdd(pixel + k, weight * values.values[k]);
      });
    }
  }
}

template <int kVector>
const char* scatter(const FeatureMaps& gradients, const Pooling& pooling, const float* regions, int64_t count,
                    const float* pooled, void* stream) {
  const TableSize<float> table(pooling);
  if (!table.fits()) return "output_size is too large for the GPU";
  return launch(&scatter_regions<kVector>, dim3(static_cast<unsigned>(count)), dim3(kThreads), table.bytes, stream,
                gradients, pooling, regions, table.capacity, pooled);
}

}  // namespace

const char* launch_roi_align_backward_atomic(const FeatureMaps& gradients, const Pooling& pooling, const float* regions,
                                             int64_t count, const float* pooled_gradient, void* stream) {
  if (count == 0) return nullptr;
  return gradients.channels % 4 == 0 ? scatter<4>(gradients, pooling, regions, count, pooled_gradient, stream)
                                     : scatter<1>(gradients, pooling, regions, count, pooled_gradient, stream);
}

}  // namespace mrcnn
