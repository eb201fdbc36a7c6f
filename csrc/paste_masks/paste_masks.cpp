// Masks of a fixed resolution put into the image, as the pixels where their runs begin and end, or whole.
#include "paste_masks.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "../common.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace mrcnn {
namespace {

constexpr int64_t kLanes = 8;  // tables are padded to whole vectors

int64_t padded(int64_t count) {
  return (count + kLanes - 1) / kLanes * kLanes;
}

// ---- which pixels a mask reaches, and where they lie among its values

// Consecutive pixels of one axis.
struct Pixels {
  int64_t first = 0, end = 0;
  std::vector<int32_t> value;   // of the two values around a pixel the first, counted from the zero before value 0
  std::vector<float> fraction;  // between the two

  void place(double low, double high, int64_t bins, int64_t length) {
    const PasteAxis axis = paste_axis(low, high, bins);
    first = end = 0;
    if (has_pixels(axis)) {
      first = first_pixel(axis, -1, length);
      end = std::max(first, first_pixel(axis, bins, length));
    }
    value.resize(padded(count()), 0);
    fraction.resize(padded(count()), 0.f);
    for (int64_t i = 0; i < count(); ++i) {
      const PastePlace place = paste_place(axis, first + i);
      value[i] = static_cast<int32_t>(place.cell) + 1;
      fraction[i] = place.fraction;
    }
    std::fill(value.begin() + count(), value.end(), 0);
    std::fill(fraction.begin() + count(), fraction.end(), 0.f);
  }

  int64_t count() const { return end - first; }
};

// The rows of a mask by the cell that they lie in; cells without rows are left out.
struct Cells {
  std::vector<int32_t> value;                        // as in Pixels
  std::vector<int32_t> first, last;                  // rows, counted from the mask's first
  std::vector<float> first_fraction, last_fraction;  // of those rows
  int64_t count = 0;

  void gather(const Pixels& rows) {
    count = 0;
    const auto size = static_cast<size_t>(padded(rows.count()));
    for (auto* numbers : {&value, &first, &last}) numbers->assign(size, 0);
    for (auto* numbers : {&first_fraction, &last_fraction}) numbers->assign(size, 0.f);
    for (int64_t row = 0; row < rows.count(); ++row) {
      if (row == 0 || rows.value[row] != rows.value[row - 1]) {
        value[count] = rows.value[row];
        first[count] = static_cast<int32_t>(row);
        first_fraction[count] = rows.fraction[row];
        ++count;
      }
      last[count - 1] = static_cast<int32_t>(row);
      last_fraction[count - 1] = rows.fraction[row];
    }
  }
};

// ---- the inner loops, plain and with AVX2

// to[i] = the mix of from[value[i]] and from[value[i] + 1]; `count` is whole vectors.
void mix_places_plain(const float* from, const int32_t* value, const float* fraction, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = mixed(from[value[i]], from[value[i] + 1], fraction[i]);
}

// to[i] = the mix of two columns by one fraction.
void mix_columns_plain(const float* left, const float* right, float fraction, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = mixed(left[i], right[i], fraction);
}

// Bit i of `first` and `last`: whether the first and last row of cell i belong to the mask. At most 64 cells.
void ends_of_cells_plain(const float* column, const Cells& cells, int64_t from, int64_t count, float threshold,
                         uint64_t* first, uint64_t* last) {
  *first = *last = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k = from + i;
    const float above = column[cells.value[k]], below = column[cells.value[k] + 1];
    *first |= static_cast<uint64_t>(mixed(above, below, cells.first_fraction[k]) >= threshold) << i;
    *last |= static_cast<uint64_t>(mixed(above, below, cells.last_fraction[k]) >= threshold) << i;
  }
}

// to[i] = whether the mix of two rows reaches the threshold.
void hold_row_plain(const float* above, const float* below, float fraction, int64_t count, float threshold, bool* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = mixed(above[i], below[i], fraction) >= threshold;
}

#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2")

inline __m256 mixed_avx2(__m256 from, __m256 to, __m256 fraction) {
  return _mm256_add_ps(from, _mm256_mul_ps(fraction, _mm256_sub_ps(to, from)));
}

void mix_places_avx2(const float* from, const int32_t* value, const float* fraction, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(value + i));
    const __m256 first = _mm256_i32gather_ps(from, index, 4), second = _mm256_i32gather_ps(from + 1, index, 4);
    _mm256_storeu_ps(to + i, mixed_avx2(first, second, _mm256_loadu_ps(fraction + i)));
  }
}

void mix_columns_avx2(const float* left, const float* right, float fraction, int64_t count, float* to) {
  const __m256 weight = _mm256_set1_ps(fraction);
  for (int64_t i = 0; i < count; i += kLanes) {
    _mm256_storeu_ps(to + i, mixed_avx2(_mm256_loadu_ps(left + i), _mm256_loadu_ps(right + i), weight));
  }
}

void ends_of_cells_avx2(const float* column, const Cells& cells, int64_t from, int64_t count, float threshold,
                        uint64_t* first, uint64_t* last) {
  const __m256 limit = _mm256_set1_ps(threshold);
  // Where no cell is empty the values lie side by side.
  const bool dense = cells.value[from + count - 1] - cells.value[from] == count - 1;
  uint64_t firsts = 0, lasts = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t k = from + i;
    __m256 above, below;
    if (dense) {
      above = _mm256_loadu_ps(column + cells.value[from] + i);
      below = _mm256_loadu_ps(column + cells.value[from] + i + 1);
    } else {
      const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&cells.value[k]));
      above = _mm256_i32gather_ps(column, index, 4);
      below = _mm256_i32gather_ps(column + 1, index, 4);
    }
    const __m256 top = mixed_avx2(above, below, _mm256_loadu_ps(&cells.first_fraction[k]));
    const __m256 bottom = mixed_avx2(above, below, _mm256_loadu_ps(&cells.last_fraction[k]));
    const auto bits_top = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(top, limit, _CMP_GE_OQ)));
    const auto bits_bottom = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(bottom, limit, _CMP_GE_OQ)));
    firsts |= static_cast<uint64_t>(bits_top) << i;
    lasts |= static_cast<uint64_t>(bits_bottom) << i;
  }
  const uint64_t used = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  *first = firsts & used;
  *last = lasts & used;
}

void hold_row_avx2(const float* above, const float* below, float fraction, int64_t count, float threshold, bool* to) {
  const __m256 weight = _mm256_set1_ps(fraction), limit = _mm256_set1_ps(threshold);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m256 value = mixed_avx2(_mm256_loadu_ps(above + i), _mm256_loadu_ps(below + i), weight);
    const __m256i held = _mm256_castps_si256(_mm256_cmp_ps(value, limit, _CMP_GE_OQ));  // -1 or 0
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(held), _mm256_extracti128_si256(held, 1));
    const __m128i bytes = _mm_and_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i), bytes);
  }
  hold_row_plain(above + i, below + i, fraction, count - i, threshold, to + i);
}

#pragma GCC pop_options
#endif

struct Loops {
  decltype(&mix_places_plain) mix_places = mix_places_plain;
  decltype(&mix_columns_plain) mix_columns = mix_columns_plain;
  decltype(&ends_of_cells_plain) ends_of_cells = ends_of_cells_plain;
  decltype(&hold_row_plain) hold_row = hold_row_plain;
};

Loops chosen_loops() {
#ifdef __x86_64__
  if (has_avx2()) return {mix_places_avx2, mix_columns_avx2, ends_of_cells_avx2, hold_row_avx2};
#endif
  return {};
}

// ---- one mask

// What a thread keeps from mask to mask.
struct Workspace {
  Loops loops = chosen_loops();
  Pixels rows, columns;
  Cells cells;
  std::vector<float> values, column, above, below;

  void place(const PasteCall& call, int64_t n) {
    const double* box = call.boxes + 4 * n;
    rows.place(box[1], box[3], call.size, call.height);
    columns.place(box[0], box[2], call.size, call.width);
    if (rows.count() == 0 || columns.count() == 0) rows.end = rows.first;
  }
};

// Appends the pixels where mask n begins and ends, down the columns.
void append_edges(const PasteCall& call, int64_t n, Workspace& work, std::vector<int32_t>& edges) {
  work.place(call, n);
  const Pixels &rows = work.rows, &columns = work.columns;
  if (rows.count() == 0) return;
  const Cells& cells = work.cells;
  work.cells.gather(rows);
  // The mask's columns one after the other, with a column of zeros at both ends and zeros above and below each; one
  // vector more, as the last column is read in whole vectors.
  const int64_t size = call.size, stride = padded(size + 2), before = static_cast<int64_t>(edges.size());
  work.values.assign((size + 2) * stride + kLanes, 0.f);
  for (int64_t i = 0; i < size; ++i) {
    const float* row = call.masks + (n * size + i) * size;
    for (int64_t j = 0; j < size; ++j) work.values[(j + 1) * stride + i + 1] = row[j];
  }
  work.column.assign(stride + 2 * kLanes, 0.f);
  float* column = work.column.data();
  // A run that goes on at the top of the next column is one run: the two edges that meet cancel.
  const auto toggle = [&](int64_t pixel) {
    if (static_cast<int64_t>(edges.size()) > before && edges.back() == pixel) {
      edges.pop_back();
    } else {
      edges.push_back(static_cast<int32_t>(pixel));
    }
  };
  for (int64_t x = 0; x < columns.count(); ++x) {
    const float* left = work.values.data() + columns.value[x] * stride;
    work.loops.mix_columns(left, left + stride, columns.fraction[x], stride, column);
    const int64_t top = (columns.first + x) * call.height + rows.first;
    uint64_t inside = 0;
    for (int64_t from = 0; from < cells.count; from += 64) {
      const int64_t count = std::min<int64_t>(64, cells.count - from);
      uint64_t first, last;
      work.loops.ends_of_cells(column, cells, from, count, call.threshold, &first, &last);
      const uint64_t used = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
      const uint64_t entered = (first ^ (last << 1 | inside)) & used, passed = first ^ last;
      for (uint64_t rest = entered | passed; rest != 0; rest &= rest - 1) {
        const int bit = __builtin_ctzll(rest);
        const int64_t k = from + bit;
        if ((entered >> bit & 1) != 0) toggle(top + cells.first[k]);
        if ((passed >> bit & 1) == 0) continue;
        const float above = column[cells.value[k]], below = column[cells.value[k] + 1];
        const bool starts_inside = (first >> bit & 1) != 0;
        int64_t same = cells.first[k], other = cells.last[k];
        while (other - same > 1) {
          const int64_t middle = (same + other) / 2;
          const bool held = mixed(above, below, rows.fraction[middle]) >= call.threshold;
          (held == starts_inside ? same : other) = middle;
        }
        toggle(top + other);
      }
      inside = last >> (count - 1) & 1;
    }
    if (inside != 0) toggle(top + rows.count());
  }
}

// Fills one image with mask n; the image is zeros.
void fill_image(const PasteCall& call, int64_t n, Workspace& work, bool* image) {
  work.place(call, n);
  const Pixels &rows = work.rows, &columns = work.columns;
  if (rows.count() == 0) return;
  const int64_t size = call.size, width = padded(columns.count());
  work.column.assign(size + 2, 0.f);
  work.above.assign(width, 0.f);
  work.below.assign(width, 0.f);
  int32_t loaded = -2;  // the value row that `above` holds; `below` holds the next one
  const auto load = [&](int32_t value, std::vector<float>& to) {
    if (value < 1 || value > size) {
      std::fill(to.begin(), to.end(), 0.f);
      return;
    }
    std::memcpy(work.column.data() + 1, call.masks + (n * size + value - 1) * size, size * sizeof(float));
    work.loops.mix_places(work.column.data(), columns.value.data(), columns.fraction.data(), width, to.data());
  };
  for (int64_t y = 0; y < rows.count(); ++y) {
    const int32_t value = rows.value[y];
    if (value != loaded) {
      if (value == loaded + 1) {
        work.above.swap(work.below);
      } else {
        load(value, work.above);
      }
      load(value + 1, work.below);
      loaded = value;
    }
    work.loops.hold_row(work.above.data(), work.below.data(), rows.fraction[y], columns.count(), call.threshold,
                        image + (rows.first + y) * call.width + columns.first);
  }
}

// ---- arguments

struct Arguments {
  Tensor masks, boxes;
  PasteCall call;
};

Arguments checked(const char* op, const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                  double threshold) {
  check(masks.dim() == 3 && masks.size(1) == masks.size(2), op, ": masks must be [N, M, M], got ", ShapeOf{masks});
  check(masks.size(0) == 0 || masks.size(1) > 0, op, ": masks must have rows and columns, got ", ShapeOf{masks});
  check(masks.size(1) <= kMaximumPasteSize, op, ": masks must have at most ", kMaximumPasteSize,
        " rows and columns, got ", ShapeOf{masks});
  check(boxes.dim() == 2 && boxes.size(0) == masks.size(0) && boxes.size(1) == 4, op, ": boxes must be [",
        masks.size(0), ", 4] as there are masks, got ", ShapeOf{boxes});
  check(is_floating(masks.scalar_type()), op, ": masks must be floating point, got ", masks.scalar_type());
  check(is_floating(boxes.scalar_type()), op, ": boxes must be floating point, got ", boxes.scalar_type());
  check(boxes.is_cuda() == masks.is_cuda() && boxes.get_device_index() == masks.get_device_index(), op,
        ": boxes must be on the device of masks");
  check(height >= 0 && width >= 0 && (height == 0 || width <= std::numeric_limits<int32_t>::max() / height), op,
        ": image_size must be two numbers from 0 with less than 2^31 pixels, got ", height, " x ", width);
  check(threshold == threshold, op, ": threshold must be a number, got NaN");
  Arguments arguments{converted(masks, ScalarType::Float), converted(boxes, ScalarType::Double), {}};
  arguments.call = {arguments.masks.const_data_ptr<float>(),
                    arguments.boxes.const_data_ptr<double>(),
                    masks.size(0),
                    masks.size(1),
                    height,
                    width,
                    static_cast<float>(threshold)};
  return arguments;
}

std::vector<Tensor> allocated_edges(const Tensor& masks, int64_t capacity) {
  check(capacity >= 0, "paste_masks: capacity must not be negative, got ", capacity);
  return {torch::stable::new_empty(masks, {capacity}, ScalarType::Int),
          torch::stable::new_empty(masks, {masks.size(0) + 1}, ScalarType::Long)};
}

// ---- CPU

std::vector<Tensor> paste_masks_cpu(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                                    double threshold, int64_t capacity) {
  const Arguments arguments = checked("paste_masks", masks, boxes, height, width, threshold);
  const PasteCall& call = arguments.call;
  std::vector<std::vector<int32_t>> found(call.count);
  parallel_for(0, call.count, 4, [&](int64_t begin, int64_t end) {
    Workspace work;
    for (int64_t n = begin; n < end; ++n) append_edges(call, n, work, found[n]);
  });
  const std::vector<Tensor> result = allocated_edges(masks, capacity);
  auto* edges = result[0].mutable_data_ptr<int32_t>();
  auto* starts = result[1].mutable_data_ptr<int64_t>();
  starts[0] = 0;
  for (int64_t n = 0; n < call.count; ++n) {
    starts[n + 1] = starts[n] + static_cast<int64_t>(found[n].size());
    if (starts[n + 1] <= capacity) std::copy(found[n].begin(), found[n].end(), edges + starts[n]);
  }
  return result;
}

Tensor paste_masks_dense_cpu(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                             double threshold) {
  const Arguments arguments = checked("paste_masks_dense", masks, boxes, height, width, threshold);
  const PasteCall& call = arguments.call;
  Tensor images = torch::stable::new_empty(masks, {call.count, height, width}, ScalarType::Bool);
  prefer_huge_pages(images);
  bool* image = images.mutable_data_ptr<bool>();
  parallel_for(0, call.count, 1, [&](int64_t begin, int64_t end) {
    Workspace work;
    for (int64_t n = begin; n < end; ++n) {
      std::memset(image + n * height * width, 0, height * width);
      fill_image(call, n, work, image + n * height * width);
    }
  });
  return images;
}

// ---- CUDA

#ifdef MRCNN_CUDA
std::vector<Tensor> paste_masks_cuda(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                                     double threshold, int64_t capacity) {
  const torch::stable::accelerator::DeviceGuard guard(masks.get_device_index());
  const Arguments arguments = checked("paste_masks", masks, boxes, height, width, threshold);
  const PasteCall& call = arguments.call;
  std::vector<Tensor> result = allocated_edges(masks, capacity);
  if (call.count == 0 || height == 0 || width == 0) {
    torch::stable::zero_(result[1]);
    return result;
  }
  Tensor offsets = torch::stable::new_empty(masks, {call.count * width}, ScalarType::Int);
  check_launch("paste_masks", launch_paste_edges(call, capacity, offsets.mutable_data_ptr<int32_t>(),
                                                 result[1].mutable_data_ptr<int64_t>(),
                                                 result[0].mutable_data_ptr<int32_t>(), current_stream(masks)));
  return result;
}

Tensor paste_masks_dense_cuda(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                              double threshold) {
  const torch::stable::accelerator::DeviceGuard guard(masks.get_device_index());
  const Arguments arguments = checked("paste_masks_dense", masks, boxes, height, width, threshold);
  Tensor images = torch::stable::new_empty(masks, {masks.size(0), height, width}, ScalarType::Bool);
  if (images.numel() == 0) return images;
  check_launch("paste_masks_dense",
               launch_paste_dense(arguments.call, images.mutable_data_ptr<bool>(), current_stream(masks)));
  return images;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "paste_masks(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold, SymInt capacity) "
      "-> Tensor[]");
  m.def("paste_masks_dense(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("paste_masks", TORCH_BOX(&paste_masks_cpu));
  m.impl("paste_masks_dense", TORCH_BOX(&paste_masks_dense_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("paste_masks", TORCH_BOX(&paste_masks_cuda));
  m.impl("paste_masks_dense", TORCH_BOX(&paste_masks_dense_cuda));
}
#endif

}  // namespace mrcnn
