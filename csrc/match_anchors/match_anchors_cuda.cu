// Matching of anchors to objects on the device, without the matrix of all their overlaps and without a word to the
// host.
#include "../cuda_launch.h"
#include "match_anchors.h"

namespace mrcnn {
namespace {

constexpr int kThreads = 128;
constexpr unsigned kWarp = 0xffffffffu;

// The bit patterns of numbers that are not negative have the order of the numbers, so a maximum of whole numbers, which
// comes out the same in any order, does for them.
__device__ __forceinline__ void raise_to(float* address, float value) {
  int bits;
  memcpy(&bits, &value, sizeof(bits));
  atomicMax(reinterpret_cast<int*>(address), bits);
}
__device__ __forceinline__ void raise_to(double* address, double value) {
  long long bits;
  memcpy(&bits, &value, sizeof(bits));
  atomicMax(reinterpret_cast<long long*>(address), bits);
}

template <typename T>
__device__ __forceinline__ T greatest_of_warp(T value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(kWarp, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// Calls `work(box, area, number)` in all lanes together for each box that intersects an anchor of the warp, by rising
// number. One lane tries one box against the bounding box of the warp's anchors; `seen(number, box)` is called by each
// lane for its own box before.
template <typename T, typename Seen, typename Work>
__device__ __forceinline__ void for_boxes_touching(const T* anchor, const T* boxes, int64_t count, const Seen& seen,
                                                   const Work& work) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T infinity = static_cast<T>(INFINITY);
  // A NaN is passed over.
  const T x1 = -greatest_of_warp(anchor[0] < infinity ? -anchor[0] : -infinity);
  const T y1 = -greatest_of_warp(anchor[1] < infinity ? -anchor[1] : -infinity);
  const T x2 = greatest_of_warp(anchor[2] > -infinity ? anchor[2] : -infinity);
  const T y2 = greatest_of_warp(anchor[3] > -infinity ? anchor[3] : -infinity);
  for (int64_t first = 0; first < count; first += 32) {
    T box[4] = {0, 0, 0, 0};
    bool touches = false;
    if (first + lane < count) {
      for (int k = 0; k < 4; ++k) box[k] = boxes[4 * (first + lane) + k];
      touches = box[0] < x2 && box[2] > x1 && box[1] < y2 && box[3] > y1;
    }
    seen(first, box);
    for (unsigned rest = __ballot_sync(kWarp, touches); rest != 0; rest &= rest - 1) {
      const int source = __ffs(static_cast<int>(rest)) - 1;
      T other[4];
      for (int k = 0; k < 4; ++k) other[k] = __shfl_sync(kWarp, box[k], source);
      work(other, first + source);
    }
  }
}

// A thread beyond the last anchor takes part in its warp's operations with an anchor of NaN, which touches nothing.
template <typename T>
__device__ __forceinline__ void load_anchor(const T* anchors, int64_t count, int64_t index, T* anchor) {
  for (int k = 0; k < 4; ++k) anchor[k] = index < count ? anchors[4 * index + k] : static_cast<T>(NAN);
}

// One thread = one anchor: its best object, the verdict, and whether a crowd covers it. Where low quality is allowed,
// the warp also raises each object's best overlap.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    find_best(const T* __restrict__ anchors, int64_t count, const T* __restrict__ boxes, int64_t objects,
              const T* __restrict__ crowds, int64_t crowd_count, MatchRule<T> rule, int32_t* __restrict__ best_object,
              T* __restrict__ tops, int64_t* __restrict__ matched) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T anchor[4];
  load_anchor(anchors, count, index, anchor);
  const T area = area_of(anchor);
  T best = 0;
  int64_t object = -1, first_object = -1;
  for_boxes_touching(
      anchor, boxes, objects,
      [&](int64_t first, const T* own) {
        if (first_object >= 0) return;  // the same in all lanes
        const bool takes_part = first + lane < objects && area_of(own) == area_of(own);
        const unsigned parts = __ballot_sync(kWarp, takes_part);
        if (parts != 0) first_object = first + __ffs(static_cast<int>(parts)) - 1;
      },
      [&](const T* box, int64_t number) {
        const T overlap = overlap_of(box, area_of(box), anchor, area);
        if (overlap > best) {
          best = overlap;
          object = number;
        }
        if (!rule.allow_low_quality || !__any_sync(kWarp, overlap > T(0))) return;
        const T top = greatest_of_warp(overlap > T(0) ? overlap : T(0));
        if (lane == 0) raise_to(tops + number, top);
      });
  object = object < 0 ? first_object : object;
  int64_t verdict = object < 0 ? kBackground : matched_to(best, object, rule);
  if (__any_sync(kWarp, verdict == kBackground)) {
    for_boxes_touching(
        anchor, crowds, crowd_count, [](int64_t, const T*) {},
        [&](const T* crowd, int64_t) {
          const bool covered = area > T(0) && intersection_of(anchor, crowd) / area >= rule.crowd_coverage;
          if (covered && verdict == kBackground) verdict = kIgnored;
        });
  }
  if (index >= count) return;
  matched[index] = verdict;
  if (rule.allow_low_quality) best_object[index] = static_cast<int32_t>(object);
}

// One thread = one anchor: matched to its own best object if it ties for the best overlap of some object. An object
// that overlaps no anchor ties with all of them.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    rescue(const T* __restrict__ anchors, int64_t count, const T* __restrict__ boxes, int64_t objects,
           const int32_t* __restrict__ best_object, const T* __restrict__ tops, int64_t* __restrict__ matched) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T anchor[4];
  load_anchor(anchors, count, index, anchor);
  const T area = area_of(anchor);
  const bool open = index < count && matched[index] < 0;
  if (!__any_sync(kWarp, open)) return;
  bool ties = false;
  for_boxes_touching(
      anchor, boxes, objects,
      [&](int64_t first, const T* own) {
        const bool alone = first + lane < objects && area_of(own) == area_of(own) && tops[first + lane] == T(0);
        if (__any_sync(kWarp, alone)) ties = true;
      },
      [&](const T* box, int64_t number) {
        if (overlap_of(box, area_of(box), anchor, area) == tops[number] && tops[number] > T(0)) ties = true;
      });
  if (open && ties) matched[index] = best_object[index];
}

}  // namespace

template <typename T>
const char* launch_match_anchors(const T* anchors, int64_t count, const T* boxes, int64_t objects, const T* crowds,
                                 int64_t crowd_count, const MatchRule<T>& rule, int32_t* best, T* tops,
                                 int64_t* matched, void* stream) {
  const dim3 blocks(static_cast<unsigned>((count + kThreads - 1) / kThreads));
  const char* failure = launch(&find_best<T>, blocks, dim3(kThreads), 0, stream, anchors, count, boxes, objects, crowds,
                               crowd_count, rule, best, tops, matched);
  if (failure != nullptr || !rule.allow_low_quality || objects == 0) return failure;
  return launch(&rescue<T>, blocks, dim3(kThreads), 0, stream, anchors, count, boxes, objects,
                static_cast<const int32_t*>(best), static_cast<const T*>(tops), matched);
}

template const char* launch_match_anchors(const float*, int64_t, const float*, int64_t, const float*, int64_t,
                                          const MatchRule<float>&, int32_t*, float*, int64_t*, void*);
template const char* launch_match_anchors(const double*, int64_t, const double*, int64_t, const double*, int64_t,
                                          const MatchRule<double>&, int32_t*, double*, int64_t*, void*);

}  // namespace mrcnn
