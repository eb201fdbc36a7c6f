#pragma once
// The best anchors of one map, on the CPU, without sorting the map: with AVX2 a threshold guessed from a sample and one
// pass that compares eight logits at a time; without it, or where the guess was too high, a histogram of the keys,
// digit by digit, that finds the threshold exactly. Only what passes is sorted.
#include <algorithm>
#include <utility>
#include <vector>

#include "../avx2.h"
#include "../common.h"
#include "rpn_proposals.h"

namespace mrcnn {

// One image of one level's logits. Interleaved: all anchors of a cell, then the next cell (channels last); otherwise
// all cells of the first anchor, then of the second.
template <typename E>
struct LogitMap {
  const E* values;
  int64_t cells, anchors;
  bool interleaved;

  int64_t count() const { return cells * anchors; }
  uint32_t anchor_at(int64_t position) const {
    return static_cast<uint32_t>(interleaved ? position : position % cells * anchors + position / cells);
  }
};

template <typename Key>
struct Candidate {
  Key key;
  uint32_t anchor;
};

// By falling key, equal ones by rising anchor: eight bits of both at a time, the least significant first. A digit that
// is the same in all of them costs one look.
template <typename Key>
void sort_best_first(std::vector<Candidate<Key>>& candidates, std::vector<Candidate<Key>>& spare) {
  spare.resize(candidates.size());
  const auto pass = [&](const auto& digit) {
    size_t places[256] = {};
    for (const auto& candidate : candidates) ++places[digit(candidate)];
    if (candidates.empty() || places[digit(candidates[0])] == candidates.size()) return;
    size_t begin = 0;
    for (size_t& place : places) begin += std::exchange(place, begin);
    for (const auto& candidate : candidates) spare[places[digit(candidate)]++] = candidate;
    candidates.swap(spare);
  };
  for (unsigned shift = 0; shift < 32; shift += 8) {
    pass([=](const Candidate<Key>& candidate) { return candidate.anchor >> shift & 255; });
  }
  for (unsigned shift = 0; shift < 8 * sizeof(Key); shift += 8) {
    pass([=](const Candidate<Key>& candidate) { return 255 - (candidate.key >> shift & 255); });
  }
}

// The key of the k-th best of all, for 0 < k <= count.
template <typename A, typename E>
sort_key_t<A> exact_threshold(const LogitMap<E>& map, int64_t k) {
  using Key = sort_key_t<A>;
  Key threshold = 0;
  std::vector<int64_t> bins(kBins);
  for (unsigned above = 8 * sizeof(Key); above > 0;) {
    const unsigned digit_bits = std::min<unsigned>(kDigitBits, above), shift = above - digit_bits;
    const Key mask = (Key{1} << digit_bits) - 1;
    const bool first = above == 8 * sizeof(Key);
    std::fill(bins.begin(), bins.end(), 0);
    for (int64_t i = 0; i < map.count(); ++i) {
      const Key key = sort_key(static_cast<A>(map.values[i]));
      if (first || (key ^ threshold) >> above == 0) ++bins[key >> shift & mask];
    }
    Key digit = mask;
    for (; bins[digit] < k; --digit) k -= bins[digit];
    threshold |= digit << shift;
    above = shift;
  }
  return threshold;
}

// The k best, unordered, by their exact threshold; of those equal to it the ones that come first among the anchors.
template <typename A, typename E>
void find_exactly(const LogitMap<E>& map, int64_t k, std::vector<Candidate<sort_key_t<A>>>& found) {
  using Key = sort_key_t<A>;
  const Key threshold = exact_threshold<A>(map, k);
  std::vector<Candidate<Key>> equal;
  found.clear();
  for (int64_t i = 0; i < map.count(); ++i) {
    const Key key = sort_key(static_cast<A>(map.values[i]));
    if (key >= threshold) (key == threshold ? equal : found).push_back({key, map.anchor_at(i)});
  }
  const auto missing = static_cast<int64_t>(k - found.size());
  const auto by_anchor = [](const auto& a, const auto& b) { return a.anchor < b.anchor; };
  if (missing < static_cast<int64_t>(equal.size())) {
    std::nth_element(equal.begin(), equal.begin() + missing, equal.end(), by_anchor);
  }
  found.insert(found.end(), equal.begin(), equal.begin() + missing);
}

template <typename A, typename E>
void find_all(const LogitMap<E>& map, std::vector<Candidate<sort_key_t<A>>>& found) {
  found.clear();
  for (int64_t i = 0; i < map.count(); ++i) {
    found.push_back({sort_key(static_cast<A>(map.values[i])), map.anchor_at(i)});
  }
}

#ifdef __x86_64__
namespace avx2 {

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

// Appends those of `count` values that are not below the threshold; value i is anchor `first + step * i`.
template <typename E>
void append_from(const E* values, int64_t count, float threshold, uint32_t first, uint32_t step,
                 std::vector<Candidate<uint32_t>>& found) {
  const __m256 limit = _mm256_set1_ps(threshold);
  const auto passed = [&](const E* eight) __attribute__((target("avx2,fma,f16c"))) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(load(eight), limit, _CMP_GE_OQ)));
  };
  const auto append = [&](int64_t i) {
    found.push_back({sort_key(static_cast<float>(values[i])), first + step * static_cast<uint32_t>(i)});
  };
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    uint32_t bits = passed(values + i) | passed(values + i + 8) << 8 | passed(values + i + 16) << 16 |
                    passed(values + i + 24) << 24;
    for (; bits != 0; bits &= bits - 1) append(i + __builtin_ctz(bits));
  }
  for (; i < count; ++i) {
    if (static_cast<float>(values[i]) >= threshold) append(i);
  }
}

#pragma GCC pop_options

}  // namespace avx2

// A superset of the k best, from a threshold that a sample at regular distances suggests: its rank there is the
// expected one and four standard deviations more. False if fewer than k passed, which unlucky or NaN logits can cause.
template <typename E>
bool find_by_sample(const LogitMap<E>& map, int64_t k, std::vector<Candidate<uint32_t>>& found) {
  constexpr int64_t kSample = 2048;
  const int64_t step = std::max<int64_t>(map.count() / kSample, 1);
  std::vector<uint32_t> sample;
  sample.reserve(map.count() / step + 1);
  for (int64_t i = 0; i < map.count(); i += step) sample.push_back(sort_key(static_cast<float>(map.values[i])));
  const double expected = static_cast<double>(k) * sample.size() / map.count();
  const auto rank = static_cast<size_t>(expected + 4 * std::sqrt(expected) + 8);
  if (rank >= sample.size()) return false;
  std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), std::greater<>());
  const auto threshold = sorted_value<float>(sample[rank]);
  found.clear();
  if (map.interleaved) {
    avx2::append_from(map.values, map.count(), threshold, 0, 1, found);
  } else {
    for (int64_t a = 0; a < map.anchors; ++a) {
      avx2::append_from(map.values + a * map.cells, map.cells, threshold, static_cast<uint32_t>(a),
                        static_cast<uint32_t>(map.anchors), found);
    }
  }
  return static_cast<int64_t>(found.size()) >= k;
}
#endif

// The k best anchors of a map, best first, NaN last, equal logits in the order y, x, base anchor. `found` and `spare`
// are scratch that calls share; the result lies in the first k of `found`.
template <typename A, typename E>
void select_best(const LogitMap<E>& map, int64_t k, std::vector<Candidate<sort_key_t<A>>>& found,
                 std::vector<Candidate<sort_key_t<A>>>& spare) {
  bool done = false;
  if (map.count() <= std::max<int64_t>(2 * k, 2048)) {
    find_all<A>(map, found);
    done = true;
  }
#ifdef __x86_64__
  if constexpr (std::is_same_v<A, float>) {
    if (!done && has_avx2()) done = find_by_sample(map, k, found);
  }
#endif
  if (!done) find_exactly<A>(map, k, found);
  sort_best_first(found, spare);
}

}  // namespace mrcnn
