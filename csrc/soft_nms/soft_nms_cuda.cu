// Soft-NMS on the device. Which box is picked next depends on all picks before, so a group is one block's work.
#include "../cuda_launch.h"
#include "soft_nms.h"

namespace mrcnn {
namespace {

// A box that may be picked next: its score, and its place in the order. Of equal scores the earlier one is better.
template <typename T>
struct Best {
  T score;
  int place;

  __device__ __forceinline__ void take(T other, int at) {
    if (other > score || (other == score && at < place)) {
      score = other;
      place = at;
    }
  }
};

template <typename T>
__device__ __forceinline__ Best<T> best_of_warp(Best<T> best) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const T score = __shfl_xor_sync(0xffffffffu, best.score, distance);
    const int place = __shfl_xor_sync(0xffffffffu, best.place, distance);
    best.take(score, place);
  }
  return best;
}

// One block = one group: the block where a group begins works on it, the others have nothing to do. One thread = every
// blockDim.x-th box of the group, whose scores nobody else touches. A round picks the best box and decays the others;
// rounds take turns between two rows of shared memory, so that one barrier each is enough.
template <typename T>
__global__ void pick_boxes(const T* __restrict__ boxes, const T* __restrict__ scores, const int64_t* __restrict__ order,
                           const int64_t* __restrict__ groups, int64_t n, const __grid_constant__ SoftNms<T> rule,
                           T* __restrict__ live, T* __restrict__ result) {
  const auto begin = static_cast<int64_t>(blockIdx.x);
  if (groups != nullptr && begin > 0 && groups[begin] == groups[begin - 1]) return;
  int64_t end = n;
  if (groups != nullptr) {  // the first place behind `begin` of another group
    for (int64_t inside = begin; end - inside > 1;) {
      const int64_t middle = inside + (end - inside) / 2;
      (groups[middle] == groups[begin] ? inside : end) = middle;
    }
  }
  __shared__ Best<T> of_warps[2][32];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lane = thread % 32, warp = thread / 32, warps = threads / 32;
  constexpr int kNobody = 0x7fffffff;

  Best<T> best{T(0), kNobody};
  for (int64_t i = begin + thread; i < end; i += threads) {
    const int64_t box = order == nullptr ? i : order[i];
    live[i] = accepted(scores[box], rule);
    result[box] = T(0);
    if (live[i] > T(0)) best.take(live[i], static_cast<int>(i));
  }
  for (int round = 0;; round ^= 1) {
    best = best_of_warp(best);
    if (lane == 0) of_warps[round][warp] = best;
    __syncthreads();
    const Best<T> picked = best_of_warp(lane < warps ? of_warps[round][lane] : Best<T>{T(0), kNobody});
    if (!(picked.score > T(0))) return;
    const int64_t pick = order == nullptr ? picked.place : order[picked.place];
    const T corners[4] = {boxes[4 * pick], boxes[4 * pick + 1], boxes[4 * pick + 2], boxes[4 * pick + 3]};
    best = {T(0), kNobody};
    for (int64_t i = begin + thread; i < end; i += threads) {
      if (i == picked.place) {
        result[pick] = picked.score;
        live[i] = T(0);
      }
      T score = live[i];
      if (!(score > T(0))) continue;
      const int64_t box = order == nullptr ? i : order[i];
      score = decayed(score, overlap(corners, boxes + 4 * box), rule);
      live[i] = score;
      if (score > T(0)) best.take(score, static_cast<int>(i));
    }
  }
}

}  // namespace

template <typename T>
const char* launch_soft_nms(const T* boxes, const T* scores, const int64_t* order, const int64_t* groups, int64_t n,
                            const SoftNms<T>& rule, T* live, T* result, void* stream) {
  const bool one = groups == nullptr;
  return launch(&pick_boxes<T>, dim3(one ? 1 : static_cast<unsigned>(n)), dim3(one ? 512 : 128), 0, stream, boxes,
                scores, order, groups, n, rule, live, result);
}

template const char* launch_soft_nms(const float*, const float*, const int64_t*, const int64_t*, int64_t,
                                     const SoftNms<float>&, float*, float*, void*);
template const char* launch_soft_nms(const double*, const double*, const int64_t*, const int64_t*, int64_t,
                                     const SoftNms<double>&, double*, double*, void*);

}  // namespace mrcnn
