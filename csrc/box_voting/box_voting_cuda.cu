// Box voting on the device.
#include "../cuda_launch.h"
#include "box_voting.h"

namespace mrcnn {
namespace {

__device__ __forceinline__ Votes votes_of_warp(Votes votes) {
  for (int distance = 16; distance > 0; distance /= 2) {
    Votes other;
    other.weight = __shfl_xor_sync(0xffffffffu, votes.weight, distance);
    for (int k = 0; k < 4; ++k) other.corners[k] = __shfl_xor_sync(0xffffffffu, votes.corners[k], distance);
    other.value = __shfl_xor_sync(0xffffffffu, votes.value, distance);
    other.overlap = __shfl_xor_sync(0xffffffffu, votes.overlap, distance);
    other.count = __shfl_xor_sync(0xffffffffu, votes.count, distance);
    votes.add(other);
  }
  return votes;
}

// One warp = one kept box; one lane = every 32nd of all boxes, which votes if it is of the group and overlaps enough.
// The lanes' sums are added in a fixed order. A kept index that names no box gives NaN.
template <typename T>
__global__ void vote(const T* __restrict__ boxes, const T* __restrict__ scores, const int64_t* __restrict__ groups,
                     int64_t n, const int64_t* __restrict__ keep, int64_t kept, T threshold,
                     const __grid_constant__ Voting voting, T* __restrict__ new_boxes, T* __restrict__ new_scores) {
  const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= kept) return;
  const int64_t own = keep[row];
  if (own < 0 || own >= n) {
    if (lane < 4) new_boxes[4 * row + lane] = T(NAN);
    if (lane == 4) new_scores[row] = T(NAN);
    return;
  }
  const T box[4] = {boxes[4 * own], boxes[4 * own + 1], boxes[4 * own + 2], boxes[4 * own + 3]};
  const int64_t group = groups == nullptr ? 0 : groups[own];
  Votes votes;
  for (int64_t i = lane; i < n; i += 32) {
    if (groups != nullptr && groups[i] != group) continue;
    const T other[4] = {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
    const T iou = overlap(box, other);
    if (!(iou >= threshold)) continue;
    const double corners[4] = {static_cast<double>(other[0]), static_cast<double>(other[1]),
                               static_cast<double>(other[2]), static_cast<double>(other[3])};
    votes.add(corners, static_cast<double>(scores[i]), static_cast<double>(iou), voting);
  }
  votes = votes_of_warp(votes);
  if (lane == 0) votes.finish(box, scores[own], voting, new_boxes + 4 * row, new_scores + row);
}

}  // namespace

template <typename T>
const char* launch_box_voting(const T* boxes, const T* scores, const int64_t* groups, int64_t n, const int64_t* keep,
                              int64_t kept, T threshold, const Voting& voting, T* new_boxes, T* new_scores,
                              void* stream) {
  constexpr int kThreads = 256;
  const int64_t blocks = (kept * 32 + kThreads - 1) / kThreads;
  return launch(&vote<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, boxes, scores, groups, n,
                keep, kept, threshold, voting, new_boxes, new_scores);
}

template const char* launch_box_voting(const float*, const float*, const int64_t*, int64_t, const int64_t*, int64_t,
                                       float, const Voting&, float*, float*, void*);
template const char* launch_box_voting(const double*, const double*, const int64_t*, int64_t, const int64_t*, int64_t,
                                       double, const Voting&, double*, double*, void*);

}  // namespace mrcnn
