#pragma once
// Which kept boxes could overlap a box by more than a threshold t, without looking at the others. An overlap (IoU)
// above t bounds how unlike two boxes can be:
//
//   areas        their ratio lies between t and 1/t
//   centres      |x - x'| < (1 - t) / 2t times the width of either, and so for y and the height: along an axis, the
//                overlap of the two sides is no smaller than that of the boxes, and where both sides together are U
//                long, their ends differ by less than (1 - t) U in all, with U < width / t
//
// So kept boxes are filed by size - a level holds areas within a factor of four - and by the cell their centre is in.
// The cells of a level wrap around like a torus: far away boxes come to lie in cells of others, which costs time and
// nothing else, and no extent needs a bound.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "kept.h"
#include "order.h"

namespace mrcnn {

template <typename T>
class BoxGrid {
 public:
  BoxGrid(const T* boxes, const BoxIndex* order, int64_t n, T threshold)
      : scan_(chosen_scans<T>().chains), threshold_(threshold) {
    // Computed overlaps and bounds are off by a few roundings; this is far more than they are.
    slack_ = std::min(threshold, T(1)) * T(0.9999);
    reach_ = (1 - slack_) / (2 * slack_);
    std::vector<T> xs, ys;
    std::vector<int64_t> counts(kLevels);
    const int64_t step = std::max<int64_t>(n / 64, 1);
    for (int64_t i = 0; i < n; ++i) {
      const T* box = boxes + 4 * static_cast<size_t>(order[i]);
      const T area = (box[2] - box[0]) * (box[3] - box[1]);
      if (is_inert(box, area)) continue;
      ++counts[level_of(area)];
      if (i % step == 0) {
        xs.push_back(middle(box[0], box[2]));
        ys.push_back(middle(box[1], box[3]));
      }
    }
    const T width = extent(xs), height = extent(ys);
    size_t buckets = 0;
    for (int level = 0; level < kLevels; ++level) {
      if (counts[level] > 0) buckets = lay_out(levels_[level], level, counts[level], width, height, buckets);
    }
    buckets_.assign(buckets, Bucket{-1, 0});
    heads_.resize(buckets);
    // A chain's blocks are full but for its first.
    blocks_.reset(new Block<T>[n / 8 + std::min<size_t>(buckets, n) + 1]);
  }

  // True if no box can overlap this one by more than a threshold that is not negative: it has no area, or no finite
  // one.
  static bool is_inert(const T* box, T area) {
    return !(box[2] > box[0] && box[3] > box[1] && area > 0 && area < std::numeric_limits<T>::infinity());
  }

  // True if a kept box suppresses this one, whose area is `area`.
  bool suppresses(const T* box, T area) {
    const int own = level_of(area), low = level_of(std::max(area * slack_, std::numeric_limits<T>::denorm_min())),
              high = level_of(std::min(area / slack_, std::numeric_limits<T>::max()));
    if (levels_[own].kept > 0) {
      // Most boxes that go are suppressed by one whose centre is in the same cell.
      const int32_t head = bucket_of(box, levels_[own]).head;
      if (head >= 0 && scan_(blocks_.get(), &head, 1, box, threshold_)) return true;
      if (level_suppresses(levels_[own], box)) return true;
    }
    for (int level = low; level <= high; ++level) {
      if (level != own && levels_[level].kept > 0 && level_suppresses(levels_[level], box)) return true;
    }
    return false;
  }

  void keep(const T* box, T area) {
    Level& level = levels_[level_of(area)];
    ++level.kept;
    Bucket& bucket = bucket_of(box, level);
    if (bucket.count % 8 == 0) {
      Block<T>& block = blocks_[used_];
      block.clear();
      block.next = bucket.head;
      bucket.head = used_++;
    }
    blocks_[bucket.head].put(bucket.count++ % 8, box);
  }

 private:
  static constexpr int kMantissa = std::numeric_limits<T>::digits - 1;
  static constexpr int kLevels = std::numeric_limits<T>::max_exponent;  // half as many as there are exponents

  struct Level {
    T cells_per_pixel;
    int32_t columns, rows;  // powers of two
    size_t first;           // bucket
    int64_t kept = 0;

    size_t bucket(int32_t x, int32_t y) const {
      return first + static_cast<size_t>(y & (rows - 1)) * columns + (x & (columns - 1));
    }
  };

  struct Bucket {
    int32_t head;  // block; -1: none
    int32_t count;
  };

  static int level_of(T area) {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    Bits bits;
    std::memcpy(&bits, &area, sizeof(bits));
    return static_cast<int>(bits >> (kMantissa + 1));  // half of the exponent
  }

  static T middle(T low, T high) { return low * T(0.5) + high * T(0.5); }

  // How far centres are spread, whatever a few of them do: twice what the middle half of them takes.
  static T extent(std::vector<T>& centers) {
    if (centers.empty()) return 0;
    std::sort(centers.begin(), centers.end());
    const T spread = 2 * (centers[centers.size() * 3 / 4] - centers[centers.size() / 4]);
    return spread < std::numeric_limits<T>::max() ? spread : 0;
  }

  // Chooses cells that hold a few blocks of boxes each if all are kept, but no larger than the boxes, nor so small that
  // a box has to look into many.
  size_t lay_out(Level& level, int number, int64_t count, T width, T height, size_t first) const {
    const double size = std::ldexp(1.0, number - kLevels / 2 + 1);  // about the root of its largest area
    const double even = std::sqrt(double{width} * double{height} * 24 / static_cast<double>(count));
    const double smallest = size * std::max(double{reach_} / 2, 1.0 / 16);
    const double edge = std::clamp(even, smallest, std::max(smallest, 2 * size));
    level.cells_per_pixel = static_cast<T>(1 / edge);
    const auto cells = [&](double extent) {
      int32_t cells = 1;
      while (cells < 1024 && cells < extent / edge) cells *= 2;
      return cells;
    };
    level.columns = cells(width);
    level.rows = cells(height);
    while (level.columns > 1 && int64_t{level.columns} * level.rows > count) level.columns /= 2;
    while (level.rows > 1 && int64_t{level.columns} * level.rows > count) level.rows /= 2;
    level.first = first;
    return first + static_cast<size_t>(level.columns) * level.rows;
  }

  // Never falls as `position` rises, which is all that a range of cells needs.
  static int32_t cell(T position, const Level& level) {
    constexpr T kFar = 1 << 30;
    const T at = std::clamp(position * level.cells_per_pixel, -kFar, kFar);
    const auto whole = static_cast<int32_t>(at);
    return whole - (at < static_cast<T>(whole));
  }

  Bucket& bucket_of(const T* box, const Level& level) {
    return buckets_[level.bucket(cell(middle(box[0], box[2]), level), cell(middle(box[1], box[3]), level))];
  }

  struct Range {
    int32_t first, last;
  };

  // Cells along one axis where the centre of a box that overlaps [low, high] enough can be.
  Range range(T low, T high, const Level& level, int32_t cells) const {
    constexpr T kRounding = 8 * std::numeric_limits<T>::epsilon();
    const T center = middle(low, high);
    const T reach = reach_ * (high - low) + kRounding * std::max(std::abs(low), std::abs(high));
    const Range found{cell(center - reach, level), cell(center + reach, level)};
    return int64_t{found.last} - found.first < cells ? found : Range{0, cells - 1};
  }

  bool level_suppresses(const Level& level, const T* box) {
    const Range xs = range(box[0], box[2], level, level.columns), ys = range(box[1], box[3], level, level.rows);
    int64_t count = 0;
    for (int32_t y = ys.first; y <= ys.last; ++y) {
      for (int32_t x = xs.first; x <= xs.last; ++x) {
        const int32_t head = buckets_[level.bucket(x, y)].head;
        heads_[count] = head;
        count += head >= 0;
      }
    }
    return count > 0 && scan_(blocks_.get(), heads_.data(), count, box, threshold_);
  }

  bool (*scan_)(const Block<T>*, const int32_t*, int64_t, const T*, T);
  T threshold_, slack_, reach_;
  std::vector<Level> levels_ = std::vector<Level>(kLevels);
  std::vector<Bucket> buckets_;
  std::vector<int32_t> heads_;
  std::unique_ptr<Block<T>[]> blocks_;
  int32_t used_ = 0;
};

}  // namespace mrcnn
