// Matching of anchors to objects, without the matrix of all their overlaps.
//
// Boxes that do not intersect overlap by exactly 0, so only pairs that intersect are computed. Neighbours in the list
// of anchors are neighbours in the image: blocks of anchors are tried by their bounding box, against many objects at a
// time, and what touches it is then compared with each anchor.
#include "match_anchors.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include "../common.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace mrcnn {
namespace {

constexpr int kBlock = 64;      // anchors with one bounding box
constexpr int64_t kChunk = 32;  // blocks that share a row of each object's best overlap

// Objects or crowds, one array per coordinate so that eight are tried at a time; padded to whole vectors with NaN,
// which touches nothing.
template <typename T>
struct Columns {
  std::vector<T> x1, y1, x2, y2;
  int64_t count = 0;

  void assign(const T* boxes, int64_t n) {
    count = n;
    const auto padded = static_cast<size_t>((n + 7) / 8 * 8);
    T* const columns[] = {resized(x1, padded), resized(y1, padded), resized(x2, padded), resized(y2, padded)};
    for (int64_t i = 0; i < n; ++i) {
      for (int k = 0; k < 4; ++k) columns[k][i] = boxes[4 * i + k];
    }
  }

 private:
  static T* resized(std::vector<T>& column, size_t size) {
    column.assign(size, std::numeric_limits<T>::quiet_NaN());
    return column.data();
  }
};

// Some anchors in a row, one array per coordinate; padded with NaN. `best` and `object` are the best overlap so far
// and whose it is.
template <typename T>
struct alignas(32) Block {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock], best[kBlock];
  int32_t object[kBlock];
  T bounds[4];

  void fill(const T* anchors, int count, int32_t first_object) {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    std::fill_n(best, kBlock, T(0));
    std::fill_n(object, kBlock, first_object);
    T low_x = kInfinity, low_y = kInfinity, high_x = -kInfinity, high_y = -kInfinity;
    for (int i = 0; i < count; ++i) {
      const T* anchor = anchors + 4 * i;
      x1[i] = anchor[0];
      y1[i] = anchor[1];
      x2[i] = anchor[2];
      y2[i] = anchor[3];
      area[i] = area_of(anchor);
      low_x = anchor[0] < low_x ? anchor[0] : low_x;  // a NaN is passed over
      low_y = anchor[1] < low_y ? anchor[1] : low_y;
      high_x = anchor[2] > high_x ? anchor[2] : high_x;
      high_y = anchor[3] > high_y ? anchor[3] : high_y;
    }
    for (T* column : {x1, y1, x2, y2, area}) {
      std::fill(column + count, column + kBlock, std::numeric_limits<T>::quiet_NaN());
    }
    bounds[0] = low_x;
    bounds[1] = low_y;
    bounds[2] = high_x;
    bounds[3] = high_y;
  }
};

template <typename T>
struct Plain {
  static void fill(Block<T>& block, const T* anchors, int count, int32_t first_object) {
    block.fill(anchors, count, first_object);
  }

  // Writes the numbers of the boxes that intersect the bounding box, in rising order; returns how many.
  static int64_t touching(const Columns<T>& boxes, const T* bounds, int32_t* found) {
    int64_t n = 0;
    for (int64_t i = 0; i < boxes.count; ++i) {
      if (boxes.x1[i] < bounds[2] && boxes.x2[i] > bounds[0] && boxes.y1[i] < bounds[3] && boxes.y2[i] > bounds[1]) {
        found[n++] = static_cast<int32_t>(i);
      }
    }
    return n;
  }

  static T overlap(const Block<T>& block, int i, const T* box, T area) {
    const T anchor[4] = {block.x1[i], block.y1[i], block.x2[i], block.y2[i]};
    return overlap_of(box, area, anchor, block.area[i]);
  }

  // Brings the anchors' best up to date with one more object; returns the object's best overlap in the block.
  static T compare(Block<T>& block, const T* box, int32_t number) {
    const T area = area_of(box);
    T top = 0;
    for (int i = 0; i < kBlock; ++i) {
      const T overlap = Plain::overlap(block, i, box, area);
      block.object[i] = overlap > block.best[i] ? number : block.object[i];
      block.best[i] = overlap > block.best[i] ? overlap : block.best[i];
      top = overlap > top ? overlap : top;
    }
    return top;
  }

  // Bit i is set if anchor i overlaps the object by exactly `top`.
  static uint64_t tied(const Block<T>& block, const T* box, T top) {
    const T area = area_of(box);
    uint64_t bits = 0;
    for (int i = 0; i < kBlock; ++i) bits |= uint64_t{overlap(block, i, box, area) == top} << i;
    return bits;
  }

  // Bit i is set if anchor i lies in the crowd to the share that is asked for.
  static uint64_t covered(const Block<T>& block, const T* crowd, T share) {
    uint64_t bits = 0;
    for (int i = 0; i < kBlock; ++i) {
      const T anchor[4] = {block.x1[i], block.y1[i], block.x2[i], block.y2[i]};
      bits |= uint64_t{block.area[i] > T(0) && intersection_of(anchor, crowd) / block.area[i] >= share} << i;
    }
    return bits;
  }
};

#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2")

// The same for float32, eight anchors or boxes at a time.
struct Avx2 {
  struct Box {
    __m256 x1, y1, x2, y2, area;
  };

  static Box spread(const float* box) {
    return {_mm256_set1_ps(box[0]), _mm256_set1_ps(box[1]), _mm256_set1_ps(box[2]), _mm256_set1_ps(box[3]),
            _mm256_set1_ps(area_of(box))};
  }

  static void fill(Block<float>& block, const float* anchors, int count, int32_t first_object) {
    if (count < kBlock) return block.fill(anchors, count, first_object);
    const __m256 infinity = _mm256_set1_ps(std::numeric_limits<float>::infinity());
    __m256 low_x = infinity, low_y = infinity;
    __m256 high_x = _mm256_sub_ps(_mm256_setzero_ps(), infinity), high_y = high_x;
    for (int i = 0; i < kBlock; i += 8) {
      // Four by four transposed, twice side by side: a to d hold anchors 0 | 4, 1 | 5, 2 | 6, 3 | 7.
      const float* from = anchors + 4 * i;
      const __m256 a = two(from, from + 16), b = two(from + 4, from + 20);
      const __m256 c = two(from + 8, from + 24), d = two(from + 12, from + 28);
      const __m256 ab_low = _mm256_unpacklo_ps(a, b), cd_low = _mm256_unpacklo_ps(c, d);
      const __m256 ab_high = _mm256_unpackhi_ps(a, b), cd_high = _mm256_unpackhi_ps(c, d);
      const __m256 x1 = _mm256_shuffle_ps(ab_low, cd_low, 0x44), y1 = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
      const __m256 x2 = _mm256_shuffle_ps(ab_high, cd_high, 0x44), y2 = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
      _mm256_store_ps(block.x1 + i, x1);
      _mm256_store_ps(block.y1 + i, y1);
      _mm256_store_ps(block.x2 + i, x2);
      _mm256_store_ps(block.y2 + i, y2);
      _mm256_store_ps(block.area + i, _mm256_mul_ps(_mm256_sub_ps(x2, x1), _mm256_sub_ps(y2, y1)));
      _mm256_store_ps(block.best + i, _mm256_setzero_ps());
      _mm256_store_si256(reinterpret_cast<__m256i*>(block.object + i), _mm256_set1_epi32(first_object));
      low_x = _mm256_min_ps(x1, low_x);  // min and max return their second operand where the first is NaN
      low_y = _mm256_min_ps(y1, low_y);
      high_x = _mm256_max_ps(x2, high_x);
      high_y = _mm256_max_ps(y2, high_y);
    }
    block.bounds[0] = -greatest(_mm256_sub_ps(_mm256_setzero_ps(), low_x));
    block.bounds[1] = -greatest(_mm256_sub_ps(_mm256_setzero_ps(), low_y));
    block.bounds[2] = greatest(high_x);
    block.bounds[3] = greatest(high_y);
  }

  static int64_t touching(const Columns<float>& boxes, const float* bounds, int32_t* found) {
    const __m256 x1 = _mm256_set1_ps(bounds[0]), y1 = _mm256_set1_ps(bounds[1]);
    const __m256 x2 = _mm256_set1_ps(bounds[2]), y2 = _mm256_set1_ps(bounds[3]);
    int64_t n = 0;
    for (int64_t i = 0; i < boxes.count; i += 8) {
      const __m256 left = _mm256_cmp_ps(_mm256_loadu_ps(&boxes.x1[i]), x2, _CMP_LT_OQ);
      const __m256 right = _mm256_cmp_ps(_mm256_loadu_ps(&boxes.x2[i]), x1, _CMP_GT_OQ);
      const __m256 top = _mm256_cmp_ps(_mm256_loadu_ps(&boxes.y1[i]), y2, _CMP_LT_OQ);
      const __m256 bottom = _mm256_cmp_ps(_mm256_loadu_ps(&boxes.y2[i]), y1, _CMP_GT_OQ);
      const __m256 all = _mm256_and_ps(_mm256_and_ps(left, right), _mm256_and_ps(top, bottom));
      for (auto bits = static_cast<unsigned>(_mm256_movemask_ps(all)); bits != 0; bits &= bits - 1) {
        found[n++] = static_cast<int32_t>(i) + __builtin_ctz(bits);
      }
    }
    return n;
  }

  static __m256 intersection(const Block<float>& block, int i, const Box& box) {
    const __m256 left = _mm256_max_ps(box.x1, _mm256_load_ps(block.x1 + i));
    const __m256 top = _mm256_max_ps(box.y1, _mm256_load_ps(block.y1 + i));
    const __m256 right = _mm256_min_ps(box.x2, _mm256_load_ps(block.x2 + i));
    const __m256 bottom = _mm256_min_ps(box.y2, _mm256_load_ps(block.y2 + i));
    const __m256 zero = _mm256_setzero_ps();
    return _mm256_mul_ps(_mm256_max_ps(_mm256_sub_ps(right, left), zero),
                         _mm256_max_ps(_mm256_sub_ps(bottom, top), zero));
  }

  static __m256 overlap(const Block<float>& block, int i, const Box& box) {
    const __m256 shared = intersection(block, i, box);
    const __m256 both = _mm256_add_ps(box.area, _mm256_load_ps(block.area + i));
    return _mm256_div_ps(shared, _mm256_sub_ps(both, shared));
  }

  static float compare(Block<float>& block, const float* corners, int32_t number) {
    const Box box = spread(corners);
    const __m256 object = _mm256_castsi256_ps(_mm256_set1_epi32(number));
    auto* objects = reinterpret_cast<float*>(block.object);
    __m256 top = _mm256_setzero_ps();
    for (int i = 0; i < kBlock; i += 8) {
      const __m256 value = overlap(block, i, box), best = _mm256_load_ps(block.best + i);
      const __m256 better = _mm256_cmp_ps(value, best, _CMP_GT_OQ);
      _mm256_store_ps(block.best + i, _mm256_max_ps(value, best));
      _mm256_store_ps(objects + i, _mm256_blendv_ps(_mm256_load_ps(objects + i), object, better));
      top = _mm256_max_ps(value, top);
    }
    return greatest(top);
  }

  static uint64_t tied(const Block<float>& block, const float* corners, float top) {
    const Box box = spread(corners);
    const __m256 wanted = _mm256_set1_ps(top);
    uint64_t bits = 0;
    for (int i = 0; i < kBlock; i += 8) {
      const __m256 equal = _mm256_cmp_ps(overlap(block, i, box), wanted, _CMP_EQ_OQ);
      bits |= static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_ps(equal))) << i;
    }
    return bits;
  }

  static uint64_t covered(const Block<float>& block, const float* crowd, float share) {
    const Box box = spread(crowd);
    const __m256 wanted = _mm256_set1_ps(share), zero = _mm256_setzero_ps();
    uint64_t bits = 0;
    for (int i = 0; i < kBlock; i += 8) {
      const __m256 area = _mm256_load_ps(block.area + i);
      const __m256 enough = _mm256_cmp_ps(_mm256_div_ps(intersection(block, i, box), area), wanted, _CMP_GE_OQ);
      const __m256 both = _mm256_and_ps(enough, _mm256_cmp_ps(area, zero, _CMP_GT_OQ));
      bits |= static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_ps(both))) << i;
    }
    return bits;
  }

 private:
  static __m256 two(const float* low, const float* high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
  }

  static float greatest(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
};

#pragma GCC pop_options
#endif

// The order in which chunks are worked on: spread over the whole list, since the anchors at its end are larger, touch
// more objects and would otherwise all fall to the last thread.
int64_t spreading_step(int64_t count) {
  int64_t step = std::max<int64_t>(1, count * 5 / 8);
  while (std::gcd(step, count) != 1) ++step;
  return step;
}

template <typename T, typename Kernels>
void match(const T* anchors, int64_t count, const T* boxes, int64_t objects, const T* crowds, int64_t crowd_count,
           const MatchRule<T>& rule, int64_t* matched) {
  // An object whose area is not a number takes no part.
  int64_t first_object = 0;
  const auto takes_part = [&](int64_t g) { return area_of(boxes + 4 * g) == area_of(boxes + 4 * g); };
  while (first_object < objects && !takes_part(first_object)) ++first_object;
  if (first_object == objects) objects = 0;
  const bool rescues = rule.allow_low_quality && objects > 0;

  Columns<T> columns, crowd_columns;
  columns.assign(boxes, objects);
  crowd_columns.assign(crowds, crowd_count);
  // Rows of tops stay below 16 MB.
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  const int64_t rows = std::max<int64_t>(1, (int64_t{4} << 20) / std::max<int64_t>(objects, 1));
  const int64_t chunk_blocks = std::max(kChunk, (blocks + rows - 1) / rows);
  const int64_t chunk_anchors = chunk_blocks * kBlock, chunks = (count + chunk_anchors - 1) / chunk_anchors;
  if (chunks == 0) return;
  const int64_t step = spreading_step(chunks);
  // Few pairs are done before other threads have woken up.
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 19) / (chunk_anchors * (objects + crowd_count + 4)));

  std::vector<int32_t> best_object(rescues ? count : 0);
  std::vector<T> tops(rescues ? chunks * objects : 0);  // each object's best overlap, by chunk
  const auto for_chunks = [&](const auto& work) {
    parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) {
      Block<T> block;
      std::vector<int32_t> found(std::max(objects, crowd_count));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t chunk = i * step % chunks;
        work(chunk, block, found.data());
      }
    });
  };
  const auto for_blocks = [&](int64_t chunk, Block<T>& block, const auto& work) {
    const int64_t end = std::min(count, (chunk + 1) * chunk_anchors);
    for (int64_t first = chunk * chunk_anchors; first < end; first += kBlock) {
      const int size = static_cast<int>(std::min<int64_t>(kBlock, end - first));
      Kernels::fill(block, anchors + 4 * first, size, static_cast<int32_t>(first_object));
      work(first, size);
    }
  };

  for_chunks([&](int64_t chunk, Block<T>& block, int32_t* found) {
    T* top = tops.data() + (rescues ? chunk * objects : 0);
    for_blocks(chunk, block, [&](int64_t first, int size) {
      const int64_t touching = Kernels::touching(columns, block.bounds, found);
      for (int64_t k = 0; k < touching; ++k) {
        const int32_t g = found[k];
        const T best = Kernels::compare(block, boxes + 4 * g, g);
        if (rescues && best > top[g]) top[g] = best;
      }
      for (int i = 0; i < size; ++i) {
        matched[first + i] = objects == 0 ? kBackground : matched_to<T>(block.best[i], block.object[i], rule);
      }
      if (rescues) std::copy_n(block.object, size, best_object.data() + first);
      const int64_t crowded = Kernels::touching(crowd_columns, block.bounds, found);
      for (int64_t k = 0; k < crowded; ++k) {
        uint64_t bits = Kernels::covered(block, crowds + 4 * found[k], rule.crowd_coverage);
        for (; bits != 0; bits &= bits - 1) {
          int64_t& verdict = matched[first + __builtin_ctzll(bits)];
          if (verdict == kBackground) verdict = kIgnored;
        }
      }
    });
  });
  if (!rescues) return;

  // Anchors that tie for the best overlap of some object are matched to their own best object. That changes nothing
  // where this overlap is high enough anyway; and an object that overlaps no anchor ties with all of them at 0.
  std::vector<T> best(objects, T(0));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const T* top = tops.data() + chunk * objects;
    for (int64_t g = 0; g < objects; ++g) best[g] = top[g] > best[g] ? top[g] : best[g];
  }
  for (int64_t g = 0; g < objects; ++g) {
    if (best[g] == T(0) && takes_part(g)) {
      std::copy(best_object.begin(), best_object.end(), matched);
      return;
    }
  }
  for_chunks([&](int64_t chunk, Block<T>& block, int32_t* found) {
    const T* top = tops.data() + chunk * objects;
    std::vector<T> near, near_top;
    for (int64_t g = 0; g < objects; ++g) {
      if (top[g] == best[g] && best[g] > T(0) && best[g] < rule.high) {
        near.insert(near.end(), boxes + 4 * g, boxes + 4 * g + 4);
        near_top.push_back(best[g]);
      }
    }
    if (near_top.empty()) return;
    Columns<T> near_columns;
    near_columns.assign(near.data(), static_cast<int64_t>(near_top.size()));
    for_blocks(chunk, block, [&](int64_t first, int) {
      const int64_t touching = Kernels::touching(near_columns, block.bounds, found);
      for (int64_t k = 0; k < touching; ++k) {
        uint64_t bits = Kernels::tied(block, near.data() + 4 * found[k], near_top[found[k]]);
        for (; bits != 0; bits &= bits - 1) {
          const int64_t a = first + __builtin_ctzll(bits);
          matched[a] = best_object[a];
        }
      }
    });
  });
}

void match_boxes(const float* anchors, int64_t count, const float* boxes, int64_t objects, const float* crowds,
                 int64_t crowd_count, const MatchRule<float>& rule, int64_t* matched) {
#ifdef __x86_64__
  if (has_avx2()) return match<float, Avx2>(anchors, count, boxes, objects, crowds, crowd_count, rule, matched);
#endif
  match<float, Plain<float>>(anchors, count, boxes, objects, crowds, crowd_count, rule, matched);
}

void match_boxes(const double* anchors, int64_t count, const double* boxes, int64_t objects, const double* crowds,
                 int64_t crowd_count, const MatchRule<double>& rule, int64_t* matched) {
  match<double, Plain<double>>(anchors, count, boxes, objects, crowds, crowd_count, rule, matched);
}

void check_boxes(const char* name, const Tensor& boxes, const Tensor& anchors) {
  check(boxes.dim() == 2 && boxes.size(1) == 4, "match_anchors: ", name, " must be [N, 4], got ", ShapeOf{boxes});
  check(is_floating(boxes.scalar_type()), "match_anchors: ", name, " must be floating point, got ",
        boxes.scalar_type());
  check(boxes.size(0) <= std::numeric_limits<int32_t>::max(), "match_anchors: too many ", name, ": ", boxes.size(0));
  check(boxes.is_cuda() == anchors.is_cuda() && boxes.get_device_index() == anchors.get_device_index(),
        "match_anchors: ", name, " must be on the device of anchors");
}

struct Boxes {
  Tensor anchors, boxes;
  std::optional<Tensor> crowds;

  int64_t crowd_count() const { return crowds ? crowds->size(0) : 0; }
};

// Half-precision boxes are compared in float32: their areas would overflow and their overlaps would be coarse.
Boxes checked(const Tensor& anchors, const Tensor& boxes, const std::optional<Tensor>& ignore, double low,
              double high) {
  check_boxes("anchors", anchors, anchors);
  check_boxes("boxes", boxes, anchors);
  if (ignore) check_boxes("ignore", *ignore, anchors);
  check(low <= high, "match_anchors: low must be a number that is not above high, got ", low, " and ", high);
  const bool wide = anchors.scalar_type() == ScalarType::Double || boxes.scalar_type() == ScalarType::Double ||
                    (ignore && ignore->scalar_type() == ScalarType::Double);
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  return {converted(anchors, type), converted(boxes, type),
          ignore ? std::make_optional(converted(*ignore, type)) : std::nullopt};
}

template <typename T>
MatchRule<T> rule_in(double low, double high, double crowd_coverage, bool allow_low_quality) {
  return {static_cast<T>(low), static_cast<T>(high), static_cast<T>(crowd_coverage), allow_low_quality};
}

Tensor match_anchors_cpu(const Tensor& anchors, const Tensor& boxes, const std::optional<Tensor>& ignore, double low,
                         double high, double crowd_coverage, bool allow_low_quality) {
  const Boxes dense = checked(anchors, boxes, ignore, low, high);
  Tensor matched = torch::stable::new_empty(dense.anchors, {dense.anchors.size(0)}, ScalarType::Long);
  THO_DISPATCH_V2(dense.anchors.scalar_type(), "match_anchors", AT_WRAP([&] {
                    match_boxes(dense.anchors.const_data_ptr<scalar_t>(), dense.anchors.size(0),
                                dense.boxes.const_data_ptr<scalar_t>(), dense.boxes.size(0),
                                dense.crowds ? dense.crowds->const_data_ptr<scalar_t>() : nullptr, dense.crowd_count(),
                                rule_in<scalar_t>(low, high, crowd_coverage, allow_low_quality),
                                matched.mutable_data_ptr<int64_t>());
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return matched;
}

#ifdef MRCNN_CUDA
Tensor match_anchors_cuda(const Tensor& anchors, const Tensor& boxes, const std::optional<Tensor>& ignore, double low,
                          double high, double crowd_coverage, bool allow_low_quality) {
  const torch::stable::accelerator::DeviceGuard guard(anchors.get_device_index());
  const Boxes dense = checked(anchors, boxes, ignore, low, high);
  const int64_t count = dense.anchors.size(0), objects = dense.boxes.size(0);
  Tensor matched = torch::stable::new_empty(dense.anchors, {count}, ScalarType::Long);
  if (count == 0) return matched;
  Tensor best = torch::stable::new_empty(dense.anchors, {allow_low_quality ? count : 0}, ScalarType::Int);
  Tensor tops = torch::stable::new_zeros(dense.anchors, {allow_low_quality ? objects : 0});
  THO_DISPATCH_V2(
      dense.anchors.scalar_type(), "match_anchors", AT_WRAP([&] {
        check_launch(
            "match_anchors",
            launch_match_anchors<scalar_t>(
                dense.anchors.const_data_ptr<scalar_t>(), count, dense.boxes.const_data_ptr<scalar_t>(), objects,
                dense.crowds ? dense.crowds->const_data_ptr<scalar_t>() : nullptr, dense.crowd_count(),
                rule_in<scalar_t>(low, high, crowd_coverage, allow_low_quality), best.mutable_data_ptr<int32_t>(),
                tops.mutable_data_ptr<scalar_t>(), matched.mutable_data_ptr<int64_t>(), current_stream(dense.anchors)));
      }),
      AT_EXPAND(AT_FLOATING_TYPES));
  return matched;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "match_anchors(Tensor anchors, Tensor boxes, Tensor? ignore, float low, float high, float crowd_coverage, "
      "bool allow_low_quality) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("match_anchors", TORCH_BOX(&match_anchors_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("match_anchors", TORCH_BOX(&match_anchors_cuda));
}
#endif

}  // namespace mrcnn
