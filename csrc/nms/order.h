#pragma once
// Boxes in order on the CPU: by falling score, and gathered by group. Both are stable, so equal scores keep the order
// of their boxes. A radix sort: comparing sorts take longer than the suppression of a few thousand boxes does.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "../common.h"

namespace mrcnn {

using BoxIndex = uint32_t;
constexpr int64_t kMaximumBoxes = int64_t{1} << 31;

// A number that rises as the score falls. NaN comes first, and -0 equals 0, as in torch.sort.
inline uint32_t falling_key(float score) {
  if (score != score) return 0;
  score += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return ~(bits ^ ((bits >> 31) != 0 ? ~uint32_t{0} : uint32_t{1} << 31));
}

inline uint64_t falling_key(double score) {
  if (score != score) return 0;
  score += 0.0;
  uint64_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return ~(bits ^ ((bits >> 63) != 0 ? ~uint64_t{0} : uint64_t{1} << 63));
}

// Sorts words by their upper half, kBits at a time, and keeps the order of equal ones.
template <int kBits>
void radix_sort(std::vector<uint64_t>& words) {
  constexpr int kPasses = (32 + kBits - 1) / kBits;
  constexpr uint32_t kDigits = 1u << kBits;
  std::vector<uint32_t> counts(kPasses * kDigits);
  for (const uint64_t word : words) {
    for (int pass = 0; pass < kPasses; ++pass) {
      ++counts[pass * kDigits + (word >> (32 + pass * kBits) & (kDigits - 1))];
    }
  }
  std::vector<uint64_t> sorted(words.size());
  for (int pass = 0; pass < kPasses; ++pass) {
    uint32_t* first = &counts[pass * kDigits];
    const int shift = 32 + pass * kBits;
    if (first[words[0] >> shift & (kDigits - 1)] == words.size()) continue;  // all have the same digit
    uint32_t total = 0;
    for (uint32_t digit = 0; digit < kDigits; ++digit) total += std::exchange(first[digit], total);
    for (const uint64_t word : words) sorted[first[word >> shift & (kDigits - 1)]++] = word;
    words.swap(sorted);
  }
}

// The boxes' numbers, best score first.
inline std::vector<BoxIndex> by_falling_score(const float* scores, int64_t n) {
  std::vector<uint64_t> words(n);
  for (int64_t i = 0; i < n; ++i) words[i] = uint64_t{falling_key(scores[i])} << 32 | static_cast<uint64_t>(i);
  if (n < 64) {
    std::sort(words.begin(), words.end());
  } else if (n < 4096) {
    radix_sort<8>(words);  // smaller tables, which must be cleared and summed
  } else {
    radix_sort<11>(words);
  }
  std::vector<BoxIndex> order(n);
  for (int64_t i = 0; i < n; ++i) order[i] = static_cast<BoxIndex>(words[i]);
  return order;
}

inline std::vector<BoxIndex> by_falling_score(const double* scores, int64_t n) {
  std::vector<std::pair<uint64_t, BoxIndex>> keys(n);
  for (int64_t i = 0; i < n; ++i) keys[i] = {falling_key(scores[i]), static_cast<BoxIndex>(i)};
  std::sort(keys.begin(), keys.end());
  std::vector<BoxIndex> order(n);
  for (int64_t i = 0; i < n; ++i) order[i] = keys[i].second;
  return order;
}

// Boxes' numbers by rising group; group g of them is [starts[g], starts[g + 1]).
struct Grouped {
  std::vector<BoxIndex> order;
  std::vector<int64_t> starts;

  int64_t count() const { return static_cast<int64_t>(starts.size()) - 1; }
};

// Gathers `order` by the groups of its boxes; null `groups`: they are one.
inline Grouped grouped(std::vector<BoxIndex> order, const int64_t* groups) {
  const auto n = static_cast<int64_t>(order.size());
  Grouped result;
  result.starts = {0};
  if (n == 0) return result;
  if (groups == nullptr) {
    result.order = std::move(order);
    result.starts.push_back(n);
    return result;
  }
  // Numbers close to each other count places by themselves; others are counted by their rank.
  const auto [lowest, highest] = std::minmax_element(groups, groups + n);
  const uint64_t range = static_cast<uint64_t>(*highest) - static_cast<uint64_t>(*lowest);
  const bool close = range < std::max<uint64_t>(1024, 4 * static_cast<uint64_t>(n));
  std::vector<int64_t> distinct;
  if (!close) {
    distinct.assign(groups, groups + n);
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  }
  const int64_t base = *lowest;
  const auto place = [&](int64_t group) -> size_t {
    if (close) return static_cast<size_t>(group - base);
    return std::lower_bound(distinct.begin(), distinct.end(), group) - distinct.begin();
  };
  std::vector<BoxIndex> places(n);
  std::vector<BoxIndex> next(close ? range + 1 : distinct.size());
  for (int64_t i = 0; i < n; ++i) {
    places[i] = static_cast<BoxIndex>(place(groups[i]));
    ++next[places[i]];
  }
  BoxIndex total = 0;
  for (BoxIndex& count : next) {
    if (count > 0) result.starts.push_back(int64_t{total} + count);
    total += std::exchange(count, total);
  }
  result.order.resize(n);
  for (const BoxIndex box : order) result.order[next[places[box]]++] = box;
  return result;
}

inline std::vector<BoxIndex> as_given(int64_t n) {
  std::vector<BoxIndex> order(n);
  std::iota(order.begin(), order.end(), BoxIndex{0});
  return order;
}

// Calls work(g) for each group, on several threads where there are enough boxes for them to wake up in time.
template <typename Work>
void for_each_group(const Grouped& groups, const Work& work) {
  const int64_t count = groups.count(), grain = groups.starts.back() < 4096 ? std::max<int64_t>(count, 1) : 1;
  parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) work(g);
  });
}

}  // namespace mrcnn
