// Objects' masks cut to regions, straight from their polygons or runs: no mask of an image is made.
#include "mask_targets.h"

#include <algorithm>
#include <optional>

#include "../common.h"

namespace mrcnn {
namespace {

// ---- polygons

// What a thread keeps from region to region.
struct Workspace {
  std::vector<FinePoint> corners;
  std::vector<uint64_t> inside, all;  // columns of `words` words, bit = row
  std::vector<double> down, across;   // tables of both axes
  std::vector<PixelRange> rows, columns;
  std::vector<double> column, sums;  // of the weights of a column's bins; of all bins, column by column
};

void fill_polygons(const TargetCall& call, const double* box, const MaskObject& object, Workspace& work,
                   float* target) {
  const int64_t size = call.size, words = (size + 63) / 64;
  const TargetGrid grid = target_grid(box, size);
  work.all.assign(size * words, 0);
  work.inside.assign(size * words, 0);
  uint64_t* inside = work.inside.data();
  const auto toggle = [&](int64_t column, int64_t row) {
    if (row >= size) return;
    uint64_t* word = inside + column * words + row / 64;
    *word ^= ~uint64_t{0} << (row % 64);
    for (const uint64_t* end = inside + (column + 1) * words; ++word < end;) *word = ~*word;
  };
  for (int64_t q = object.first; q < object.last; ++q) {
    const int64_t first = call.masks.polygons[q], count = call.masks.polygons[q + 1] - first;
    if (count == 0) continue;
    work.corners.resize(count);
    for (int64_t p = 0; p < count; ++p) {
      work.corners[p] = fine_point(call, grid, call.masks.points + 2 * (first + p));
    }
    for (int64_t p = 0; p < count; ++p) {
      cross_columns(work.corners[p], work.corners[p + 1 < count ? p + 1 : 0], 0, size, size, toggle);
    }
    for (int64_t i = 0; i < size * words; ++i) {
      work.all[i] |= inside[i];
      inside[i] = 0;
    }
  }
  for (int64_t y = 0; y < size; ++y) {
    for (int64_t x = 0; x < size; ++x) {
      target[y * size + x] = static_cast<float>(work.all[x * words + y / 64] >> (y % 64) & 1);
    }
  }
}

// ---- run-length encoded masks

// The bins that have pixels, in the order of the mask's pixels: slots [first, last) of `ranges`.
struct Slots {
  int64_t first, last;
  int64_t low, high;  // pixels of all of them
};

Slots weigh_axis(const MappedAxis& axis, bool summed, std::vector<double>& table, std::vector<PixelRange>& ranges) {
  const int64_t bins = axis.samples.bins;
  table.resize(table_length(axis.length, bins));
  ranges.resize(bins);
  Slots slots{bins, 0, 0, 0};
  for (int64_t bin = 0; bin < bins; ++bin) {
    const int64_t slot = axis.slot(bin);
    ranges[slot] = weigh_bin(axis, bin, summed, table.data());
    if (ranges[slot].low == ranges[slot].high) continue;
    slots.first = std::min(slots.first, slot);
    slots.last = std::max(slots.last, slot + 1);
  }
  if (slots.first < slots.last) {
    slots.low = ranges[slots.first].low;
    slots.high = ranges[slots.last - 1].high;
  }
  return slots;
}

// A mask that is neither turned nor sheared: each of its columns is summed up by runs into the rows of bins, and then
// added to the columns of bins that it belongs to.
void sample_straight(const TargetCall& call, const double* box, const MaskObject& object, Workspace& work,
                     float* target) {
  const int64_t size = call.size, height = object.height;
  const MappedAxis down = mapped_axis(call, box, object, true), across = mapped_axis(call, box, object, false);
  const Slots rows = weigh_axis(down, true, work.down, work.rows);
  const Slots columns = weigh_axis(across, false, work.across, work.columns);
  work.sums.assign(size * size, 0);
  work.column.assign(size, 0);
  double *column = work.column.data(), *sums = work.sums.data();
  const int32_t* ends = call.masks.ends;
  int64_t run = run_at(ends, object, columns.low * height + rows.low), reached = columns.first;
  for (int64_t x = columns.low; x < columns.high; ++x) {
    while (work.columns[reached].high <= x) ++reached;
    if (work.columns[reached].low > x) continue;  // between the points
    const int64_t top = x * height;
    while (run < object.last && ends[run] <= top + rows.low) ++run;
    bool any = false;
    int64_t slot = rows.first;
    for (int64_t k = run; k < object.last; ++k) {
      const int64_t begin = std::max<int64_t>((k > object.first ? ends[k - 1] : 0) - top, rows.low);
      if (begin >= rows.high) break;
      if (!in_foreground(object, k)) continue;
      const int64_t end = std::min(ends[k] - top, rows.high);
      while (work.rows[slot].high <= begin) ++slot;
      for (int64_t s = slot; s < rows.last && work.rows[s].low < end; ++s) {
        const int64_t from = std::max<int64_t>(begin, work.rows[s].low), to = std::min<int64_t>(end, work.rows[s].high);
        column[s] += work.down[table_place(s, to)] - work.down[table_place(s, from)];
        any = true;
      }
    }
    if (!any) continue;
    for (int64_t s = reached; s < columns.last && work.columns[s].low <= x; ++s) {
      const double weight = work.across[table_place(s, x)];
      double* sum = sums + s * size;
      for (int64_t y = rows.first; y < rows.last; ++y) sum[y] += weight * column[y];
    }
    std::fill(column + rows.first, column + rows.last, 0.);
  }
  const auto count = static_cast<double>(down.samples.points * across.samples.points);
  for (int64_t y = 0; y < size; ++y) {
    for (int64_t x = 0; x < size; ++x) {
      const double sum = sums[across.slot(x) * size + down.slot(y)];
      target[y * size + x] = as_target(call, count > 0 ? sum / count : 0.);
    }
  }
}

void cut(const TargetCall& call, int64_t region, Workspace& work, float* target) {
  const double* box = call.boxes + 4 * region;
  MaskObject object{};
  const bool found = packed_object(call.masks, call.index[region], &object);
  if (found && is_finite(box) && object.height < 0) {
    fill_polygons(call, box, object, work, target);
  } else if (found && is_finite(box) && object.height > 0 && object.width > 0) {
    if (is_straight(call)) {
      sample_straight(call, box, object, work, target);
    } else {
      for (int64_t i = 0; i < call.size * call.size; ++i) {
        target[i] = as_target(call, sampled_mean(call, box, object, i / call.size, i % call.size));
      }
    }
  } else {
    std::fill(target, target + call.size * call.size, 0.f);
  }
}

// ---- arguments

void check_numbers(const char* name, const Tensor& tensor, ScalarType type, int64_t columns, const Tensor& boxes) {
  check(tensor.scalar_type() == type, "mask_targets: ", name, " must be ", type, ", got ", tensor.scalar_type());
  check(columns == 0 ? tensor.dim() == 1 : tensor.dim() == 2 && tensor.size(1) == columns, "mask_targets: ", name,
        columns == 0 ? " must be one row of numbers, got " : " must be rows of numbers, got ", ShapeOf{tensor});
  check(tensor.is_contiguous(), "mask_targets: ", name, " must be contiguous");
  check(tensor.is_cuda() == boxes.is_cuda() && tensor.get_device_index() == boxes.get_device_index(),
        "mask_targets: ", name, " must be on the device of boxes");
}

struct Arguments {
  Tensor boxes;
  TargetCall call;
};

Arguments checked(const Tensor& points, const Tensor& polygons, const Tensor& ends, const Tensor& objects,
                  const Tensor& index, const Tensor& boxes, const std::vector<double>& matrix,
                  const std::vector<double>& inverse, int64_t size, int64_t sampling_ratio, bool aligned,
                  std::optional<double> threshold, int64_t tallest, int64_t widest) {
  check_numbers("points", points, ScalarType::Double, 2, boxes);
  check_numbers("polygons", polygons, ScalarType::Long, 0, boxes);
  check_numbers("ends", ends, ScalarType::Int, 0, boxes);
  check_numbers("objects", objects, ScalarType::Long, 4, boxes);
  check_numbers("index", index, ScalarType::Long, 0, boxes);
  check(boxes.dim() == 2 && boxes.size(0) == index.size(0) && boxes.size(1) == 4, "mask_targets: boxes must be [",
        index.size(0), ", 4] as index has numbers, got ", ShapeOf{boxes});
  check(is_floating(boxes.scalar_type()), "mask_targets: boxes must be floating point, got ", boxes.scalar_type());
  check(polygons.size(0) > 0, "mask_targets: polygons must hold one number more than there are polygons, got none");
  check(matrix.size() == 6 && inverse.size() == 6, "mask_targets: matrix and inverse must have 6 numbers, got ",
        matrix.size(), " and ", inverse.size());
  for (const auto* numbers : {&matrix, &inverse}) {
    for (const double number : *numbers) check(std::isfinite(number), "mask_targets: matrix must be finite");
  }
  check(size > 0 && size <= kMaximumTargetSize, "mask_targets: size must be between 1 and ", kMaximumTargetSize,
        ", got ", size);
  check(sampling_ratio <= kMaximumTargetPoints, "mask_targets: sampling_ratio must be at most ", kMaximumTargetPoints,
        ", got ", sampling_ratio);
  check(tallest >= 0 && widest >= 0, "mask_targets: tallest and widest must not be negative");
  Arguments arguments{converted(boxes, ScalarType::Double), {}};
  TargetCall& call = arguments.call;
  call.masks = {points.const_data_ptr<double>(),
                polygons.const_data_ptr<int64_t>(),
                ends.const_data_ptr<int32_t>(),
                objects.const_data_ptr<int64_t>(),
                points.size(0),
                polygons.size(0) - 1,
                ends.size(0),
                objects.size(0),
                tallest,
                widest};
  call.index = index.const_data_ptr<int64_t>();
  call.boxes = arguments.boxes.const_data_ptr<double>();
  call.regions = boxes.size(0);
  call.size = size;
  call.sampling_ratio = std::max<int64_t>(sampling_ratio, 0);
  call.aligned = aligned;
  call.thresholded = threshold.has_value();
  call.threshold = static_cast<float>(threshold.value_or(0));
  std::copy(matrix.begin(), matrix.end(), call.matrix);
  std::copy(inverse.begin(), inverse.end(), call.inverse);
  return arguments;
}

// What leads outside of the packed numbers is refused; on a device, where looking would mean waiting, it gives zeros.
void check_packed(const TargetCall& call) {
  const PackedMasks& masks = call.masks;
  for (int64_t q = 0; q < masks.polygon_count; ++q) {
    const int64_t first = masks.polygons[q], last = masks.polygons[q + 1];
    check(first >= 0 && first <= last && last <= masks.point_count, "mask_targets: polygon ", q, " has the points ",
          first, " to ", last, " of ", masks.point_count);
  }
  MaskObject object{};
  for (int64_t g = 0; g < masks.object_count; ++g) {
    check(packed_object(masks, g, &object), "mask_targets: object ", g, " leads outside of what was packed");
  }
  for (int64_t r = 0; r < call.regions; ++r) {
    check(call.index[r] >= 0 && call.index[r] < masks.object_count, "mask_targets: index must be below ",
          masks.object_count, ", got ", call.index[r]);
  }
}

Tensor mask_targets_cpu(const Tensor& points, const Tensor& polygons, const Tensor& ends, const Tensor& objects,
                        const Tensor& index, const Tensor& boxes, const std::vector<double>& matrix,
                        const std::vector<double>& inverse, int64_t size, int64_t sampling_ratio, bool aligned,
                        std::optional<double> threshold, int64_t tallest, int64_t widest) {
  const Arguments arguments = checked(points, polygons, ends, objects, index, boxes, matrix, inverse, size,
                                      sampling_ratio, aligned, threshold, tallest, widest);
  const TargetCall& call = arguments.call;
  check_packed(call);
  Tensor targets = torch::stable::new_empty(boxes, {call.regions, size, size}, ScalarType::Float);
  auto* target = targets.mutable_data_ptr<float>();
  parallel_for(0, call.regions, 8, [&](int64_t begin, int64_t end) {
    Workspace work;
    for (int64_t r = begin; r < end; ++r) cut(call, r, work, target + r * size * size);
  });
  return targets;
}

#ifdef MRCNN_CUDA
Tensor mask_targets_cuda(const Tensor& points, const Tensor& polygons, const Tensor& ends, const Tensor& objects,
                         const Tensor& index, const Tensor& boxes, const std::vector<double>& matrix,
                         const std::vector<double>& inverse, int64_t size, int64_t sampling_ratio, bool aligned,
                         std::optional<double> threshold, int64_t tallest, int64_t widest) {
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const Arguments arguments = checked(points, polygons, ends, objects, index, boxes, matrix, inverse, size,
                                      sampling_ratio, aligned, threshold, tallest, widest);
  const TargetCall& call = arguments.call;
  Tensor targets = torch::stable::new_empty(boxes, {call.regions, size, size}, ScalarType::Float);
  if (targets.numel() == 0) return targets;
  const int64_t regions = call.masks.run_count > 0 ? call.regions : 0;
  Tensor tables = torch::stable::new_empty(boxes, {regions * target_table(call)}, ScalarType::Double);
  Tensor ranges = torch::stable::new_empty(boxes, {regions * 4 * size}, ScalarType::Int);
  check_launch("mask_targets",
               launch_mask_targets(call, tables.mutable_data_ptr<double>(), ranges.mutable_data_ptr<int32_t>(),
                                   targets.mutable_data_ptr<float>(), current_stream(boxes)));
  return targets;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "mask_targets(Tensor points, Tensor polygons, Tensor ends, Tensor objects, Tensor index, Tensor boxes, "
      "float[] matrix, float[] inverse, SymInt size, int sampling_ratio, bool aligned, float? threshold, int tallest, "
      "int widest) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("mask_targets", TORCH_BOX(&mask_targets_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("mask_targets", TORCH_BOX(&mask_targets_cuda));
}
#endif

}  // namespace mrcnn
