// Box voting, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/box_voting/box_voting.h"

namespace {

template <typename T>
const char* run_box_voting(const T* boxes, const T* scores, const int64_t* groups, int64_t n, const int64_t* keep,
                           int64_t kept, double threshold, int64_t method, double beta, T* new_boxes, T* new_scores) {
  const mrcnn::Voting voting{static_cast<mrcnn::VoteScore>(method), beta};
  return emulated::guarded([&] {
    return mrcnn::launch_box_voting<T>(boxes, scores, groups, n, keep, kept, static_cast<T>(threshold), voting,
                                       new_boxes, new_scores, nullptr);
  });
}

}  // namespace

extern "C" {

const char* box_voting_float(const float* boxes, const float* scores, const int64_t* groups, int64_t n,
                             const int64_t* keep, int64_t kept, double threshold, int64_t method, double beta,
                             float* new_boxes, float* new_scores) {
  return run_box_voting(boxes, scores, groups, n, keep, kept, threshold, method, beta, new_boxes, new_scores);
}

const char* box_voting_double(const double* boxes, const double* scores, const int64_t* groups, int64_t n,
                              const int64_t* keep, int64_t kept, double threshold, int64_t method, double beta,
                              double* new_boxes, double* new_scores) {
  return run_box_voting(boxes, scores, groups, n, keep, kept, threshold, method, beta, new_boxes, new_scores);
}

}  // extern "C"

namespace {

void run() {
  for (const int64_t n : {1, 33, 140}) {
    std::mt19937 random(static_cast<unsigned>(n));
    std::uniform_real_distribution<float> place(0, 60), side(1, 40), score(0, 1);
    std::vector<float> boxes, scores;
    std::vector<int64_t> groups, keep = {0, n - 1, n, -1, n / 2};
    for (int64_t i = 0; i < n; ++i) {
      const float x = place(random), y = place(random);
      boxes.insert(boxes.end(), {x, y, x + side(random), y + side(random)});
      scores.push_back(score(random));
      groups.push_back(i % 3);
    }
    boxes.shrink_to_fit();
    scores.shrink_to_fit();
    groups.shrink_to_fit();
    const auto kept = static_cast<int64_t>(keep.size());
    std::vector<float> new_boxes(4 * kept), new_scores(kept);
    for (const int64_t method : {0, 1, 2, 3, 4, 5}) {
      emulated::expect("box_voting", box_voting_float(boxes.data(), scores.data(), nullptr, n, keep.data(), kept, 0.3,
                                                      method, 2, new_boxes.data(), new_scores.data()));
      emulated::expect("box_voting with groups",
                       box_voting_float(boxes.data(), scores.data(), groups.data(), n, keep.data(), kept, 0.3, method,
                                        2, new_boxes.data(), new_scores.data()));
    }
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
