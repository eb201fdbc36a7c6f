#pragma once
// Shared by box_voting.cpp and box_voting_cuda.cu.
#include <cmath>
#include <cstdint>

#include "../nms/nms.h"
#include "../portable.h"

namespace mrcnn {

// How a kept box's new score follows from those of its voters; Detectron's names, in its order.
enum class VoteScore { kId, kTempAvg, kAvg, kIouAvg, kGeneralizedAvg, kQuasiSum };

struct Voting {
  VoteScore method;
  double beta;
};

// The voters of one kept box, summed up. In float64, so that it matters to the last bits at most who adds first.
struct Votes {
  double weight = 0, corners[4] = {0, 0, 0, 0};  // scores; boxes times scores
  double value = 0, overlap = 0;                 // what the method sums; overlaps
  int64_t count = 0;

  HOST_DEVICE void add(const double* box, double score, double iou, const Voting& voting) {
    weight += score;
    for (int k = 0; k < 4; ++k) corners[k] += score * box[k];
    ++count;
    switch (voting.method) {
      case VoteScore::kTempAvg:
        // The softmax, at temperature beta, of the logarithms of the score and of what it lacks to 1.
        value += score > 0 ? 1 / (1 + pow((1 - score) / score, 1 / voting.beta)) : 0;
        break;
      case VoteScore::kIouAvg:
        value += score * iou;
        overlap += iou;
        break;
      case VoteScore::kGeneralizedAvg:
        value += pow(score, voting.beta);
        break;
      default:
        break;
    }
  }

  HOST_DEVICE void add(const Votes& other) {
    weight += other.weight;
    for (int k = 0; k < 4; ++k) corners[k] += other.corners[k];
    value += other.value;
    overlap += other.overlap;
    count += other.count;
  }

  // The new box and score. A box without voters or whose voters weigh nothing stays as it is.
  template <typename T>
  HOST_DEVICE void finish(const T* box, T score, const Voting& voting, T* new_box, T* new_score) const {
    for (int k = 0; k < 4; ++k) new_box[k] = weight > 0 ? static_cast<T>(corners[k] / weight) : box[k];
    *new_score = score;
    if (count == 0) return;
    const auto voters = static_cast<double>(count);
    switch (voting.method) {
      case VoteScore::kId:
        break;
      case VoteScore::kTempAvg:
        *new_score = static_cast<T>(value / voters);
        break;
      case VoteScore::kAvg:
        *new_score = static_cast<T>(weight / voters);
        break;
      case VoteScore::kIouAvg:
        *new_score = static_cast<T>(value / overlap);
        break;
      case VoteScore::kGeneralizedAvg:
        *new_score = static_cast<T>(pow(value / voters, 1 / voting.beta));
        break;
      case VoteScore::kQuasiSum:
        *new_score = static_cast<T>(weight / pow(voters, voting.beta));
        break;
    }
  }
};

// Launches the CUDA kernel; `groups` may be null. Writes new_boxes [kept, 4] and new_scores [kept]. Returns nullptr or
// an error message.
template <typename T>
const char* launch_box_voting(const T* boxes, const T* scores, const int64_t* groups, int64_t n, const int64_t* keep,
                              int64_t kept, T threshold, const Voting& voting, T* new_boxes, T* new_scores,
                              void* stream);

}  // namespace mrcnn
