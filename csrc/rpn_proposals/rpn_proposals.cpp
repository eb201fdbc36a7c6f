// The proposals of a region proposal network, from the raw outputs of its convolutions: the best anchors of each level
// are found by their logits, and only those are ever made into boxes. In two steps, between which ops/rpn_proposals.py
// runs non-maximum suppression: `rpn_candidates`, and `rpn_best` of what was kept.
#include "rpn_proposals.h"

#include <limits>
#include <optional>
#include <tuple>

#include "../common.h"
#include "select.h"

namespace mrcnn {
namespace {

// ---- arguments

// Everything a call is about, checked, and with maps that lie in memory as the kernels read them.
struct Candidates {
  std::vector<Tensor> logits, deltas;
  std::vector<AnchorGrid> grids;
  std::vector<int64_t> chosen, first;  // per level: how many, and where they begin
  Decoding decoding;
  std::vector<int64_t> image_sizes;  // height and width of each image
  int64_t images, total;
  ScalarType result;

  int64_t levels() const { return static_cast<int64_t>(grids.size()); }
};

void check_map(const char* name, size_t level, const Tensor& map, const Tensor& first) {
  check(map.dim() == 4, "rpn_proposals: ", name, "[", level, "] must be [N, C, H, W], got ", ShapeOf{map});
  check(is_floating(map.scalar_type()), "rpn_proposals: ", name, "[", level, "] must be floating point, got ",
        map.scalar_type());
  check(map.scalar_type() == first.scalar_type(), "rpn_proposals: ", name, "[", level, "] must be ",
        first.scalar_type(), " as logits[0] is, got ", map.scalar_type());
  check(map.is_cuda() == first.is_cuda() && map.get_device_index() == first.get_device_index(), "rpn_proposals: ", name,
        "[", level, "] must be on the device of logits[0]");
}

// Images may lie anywhere; within one, the map is contiguous or channels last.
bool is_interleaved(const Tensor& map) {
  return map.stride(1) == 1 && map.stride(3) == map.size(1) && map.stride(2) == map.size(3) * map.size(1);
}

bool is_planar(const Tensor& map) {
  return map.stride(3) == 1 && map.stride(2) == map.size(3) && map.stride(1) == map.size(2) * map.size(3);
}

Tensor readable(const Tensor& map) {
  return is_planar(map) || is_interleaved(map) ? map : torch::stable::contiguous(map);
}

LevelMap described(const Tensor& map) {
  const bool planar = is_planar(map);
  return {map.const_data_ptr(), map.stride(0), planar ? map.size(2) * map.size(3) : 1, planar ? 1 : map.size(1)};
}

Candidates checked(const std::vector<Tensor>& logits, const std::vector<Tensor>& deltas,
                   const std::vector<double>& base_anchors, const std::vector<double>& strides, double offset,
                   const std::vector<int64_t>& image_sizes, int64_t pre_nms_top_n, const std::vector<double>& weights,
                   double clamp, double min_size) {
  check(!logits.empty() && logits.size() <= kProposalLevels, "rpn_proposals: between 1 and ", kProposalLevels,
        " levels, got ", logits.size());
  check(deltas.size() == logits.size(), "rpn_proposals: one map of deltas per map of logits, got ", deltas.size(),
        " for ", logits.size());
  check(strides.size() == 2 * logits.size(), "rpn_proposals: one stride per level, got ", strides.size() / 2, " for ",
        logits.size());
  check(pre_nms_top_n > 0, "rpn_proposals: pre_nms_top_n must be positive, got ", pre_nms_top_n);
  check(weights.size() == 4, "rpn_proposals: weights must be 4 numbers, got ", weights.size());
  Candidates call{{}, {}, {}, {}, {}, {{}, clamp, min_size}, image_sizes, logits[0].size(0), 0, ScalarType::Float};
  std::copy(weights.begin(), weights.end(), call.decoding.weights);
  size_t corners = 0;
  for (size_t l = 0; l < logits.size(); ++l) {
    check_map("logits", l, logits[l], logits[0]);
    check_map("deltas", l, deltas[l], logits[0]);
    const int64_t anchors = logits[l].size(1), height = logits[l].size(2), width = logits[l].size(3);
    check(logits[l].size(0) == call.images, "rpn_proposals: logits[", l, "] must have the ", call.images,
          " images of logits[0], got ", ShapeOf{logits[l]});
    check(deltas[l].size(0) == call.images && deltas[l].size(1) == 4 * anchors && deltas[l].size(2) == height &&
              deltas[l].size(3) == width,
          "rpn_proposals: deltas[", l, "] must be [", call.images, ", ", 4 * anchors, ", ", height, ", ", width,
          "] beside logits[", l, "], got ", ShapeOf{deltas[l]});
    check(anchors <= kMaximumBaseAnchors, "rpn_proposals: at most ", kMaximumBaseAnchors, " anchors per cell, got ",
          anchors);
    check(anchors * height * width <= std::numeric_limits<int32_t>::max(), "rpn_proposals: logits[", l,
          "] is too large: ", ShapeOf{logits[l]});
    check(corners + 4 * anchors <= base_anchors.size(), "rpn_proposals: base_anchors end before logits[", l, "]");
    AnchorGrid grid{height, width, strides[2 * l], strides[2 * l + 1], offset, static_cast<int>(anchors), {}};
    std::copy_n(base_anchors.begin() + corners, 4 * anchors, &grid.corners[0][0]);
    corners += 4 * anchors;
    call.grids.push_back(grid);
    call.chosen.push_back(std::min(pre_nms_top_n, anchors * height * width));
    call.first.push_back(call.total);
    call.total += call.chosen.back();
    call.logits.push_back(readable(logits[l]));
    call.deltas.push_back(readable(deltas[l]));
  }
  check(corners == base_anchors.size(), "rpn_proposals: ", base_anchors.size() / 4, " base anchors, but logits have ",
        corners / 4, " channels");
  check(static_cast<int64_t>(image_sizes.size()) == 2 * call.images,
        "rpn_proposals: image_sizes must be (height, width) of ", call.images, " images, got ", image_sizes.size() / 2);
  if (logits[0].scalar_type() == ScalarType::Double) call.result = ScalarType::Double;
  return call;
}

using Results = std::tuple<Tensor, Tensor, Tensor>;

Results allocated(const Candidates& call) {
  const Tensor& like = call.logits[0];
  return {torch::stable::new_empty(like, {call.images, call.total, 4}, call.result),
          torch::stable::new_empty(like, {call.images, call.total}, call.result),
          torch::stable::new_empty(like, {call.images, call.total}, ScalarType::Long)};
}

// ---- CPU

// Few anchors are done before other threads have woken up.
constexpr int64_t kAnchorsWorthAThread = 32768, kBoxesWorthAThread = 4096;

// e to the power of each number, by PyTorch, so that the bits are those of ops.decode.
void exponentiate(Tensor& tensor) {
  StableIValue stack[] = {torch::stable::detail::from(tensor)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::exp_", "", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the same tensor once more, to be let go of
}

template <typename E, typename A>
struct Worker {
  const Candidates& call;
  std::vector<uint32_t> anchors;  // [images, total]
  A *boxes, *logits, *scales;     // scales: [images, total, 2]
  int64_t* groups;

  // Where the first of the four deltas of an anchor lies.
  static const E* deltas_of(const LevelMap& map, uint32_t anchor, uint32_t per_cell, int64_t image) {
    const uint32_t cell = anchor / per_cell, first = 4 * (anchor - cell * per_cell);
    return static_cast<const E*>(map.data) + image * map.image_stride + first * map.channel_stride +
           cell * map.cell_stride;
  }

  // Which anchors, their logits and their deltas: dx and dy wait in `boxes`, the logarithms of the scales in `scales`.
  void select(int64_t image, int64_t level, std::vector<Candidate<sort_key_t<A>>>& found,
              std::vector<Candidate<sort_key_t<A>>>& spare) {
    const AnchorGrid& grid = call.grids[level];
    const LevelMap map = described(call.logits[level]), deltas = described(call.deltas[level]);
    const auto per_cell = static_cast<uint32_t>(grid.count);
    const int64_t k = call.chosen[level], first = image * call.total + call.first[level];
    if (k == 0) return;
    const E* values = static_cast<const E*>(map.data) + image * map.image_stride;
    select_best<A>(LogitMap<E>{values, grid.height * grid.width, grid.count, map.cell_stride != 1}, k, found, spare);
    constexpr int64_t kAhead = 8;  // chosen anchors lie far apart in memory: ask for them early
    for (int64_t i = 0; i < k; ++i) {
      const E* ahead = deltas_of(deltas, found[std::min(i + kAhead, k - 1)].anchor, per_cell, image);
      for (int axis = 0; axis < 4; ++axis) __builtin_prefetch(ahead + axis * deltas.channel_stride);
      const int64_t slot = first + i;
      const E* delta = deltas_of(deltas, found[i].anchor, per_cell, image);
      anchors[slot] = found[i].anchor;
      logits[slot] = sorted_value<A>(found[i].key);
      groups[slot] = image * call.levels() + level;
      for (const int axis : {0, 1}) {
        boxes[4 * slot + axis] = static_cast<A>(delta[axis * deltas.channel_stride]);
        scales[2 * slot + axis] = log_scale(static_cast<A>(delta[(2 + axis) * deltas.channel_stride]),
                                            call.decoding.weights[2 + axis], call.decoding.clamp);
      }
    }
  }

  void decode(int64_t slot, int64_t level) {
    const int64_t image = slot / call.total;
    A* box = boxes + 4 * slot;
    const bool usable =
        decoded(call.grids[level], anchors[slot], box[0], box[1], scales[2 * slot], scales[2 * slot + 1], call.decoding,
                call.image_sizes[2 * image], call.image_sizes[2 * image + 1], box);
    if (usable && is_finite(logits[slot])) return;
    std::fill(box, box + 4, A(0));
    logits[slot] = -std::numeric_limits<A>::infinity();
  }
};

template <typename E>
void compute_candidates(const Candidates& call, Results& results) {
  using A = accumulator_t<E>;
  Tensor& boxes = std::get<0>(results);
  Tensor scales = torch::stable::new_empty(boxes, {call.images, call.total, 2});
  Worker<E, A> worker{call,
                      std::vector<uint32_t>(call.images * call.total),
                      boxes.mutable_data_ptr<A>(),
                      std::get<1>(results).mutable_data_ptr<A>(),
                      scales.mutable_data_ptr<A>(),
                      std::get<2>(results).mutable_data_ptr<int64_t>()};
  int64_t all = 0;
  for (const AnchorGrid& grid : call.grids) all += call.images * grid.height * grid.width * grid.count;
  const int64_t pieces = call.images * call.levels();
  const int64_t grain = all < kAnchorsWorthAThread ? std::max<int64_t>(pieces, 1) : 1;
  parallel_for(0, pieces, grain, [&](int64_t begin, int64_t end) {
    std::vector<Candidate<sort_key_t<A>>> found, spare;
    for (int64_t i = begin; i < end; ++i) worker.select(i / call.levels(), i % call.levels(), found, spare);
  });
  exponentiate(scales);
  const int64_t* groups = worker.groups;
  parallel_for(0, call.images * call.total, kBoxesWorthAThread, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) worker.decode(slot, groups[slot] % call.levels());
  });
}

Results rpn_candidates_cpu(const std::vector<Tensor>& logits, const std::vector<Tensor>& deltas,
                           const std::vector<double>& base_anchors, const std::vector<double>& strides, double offset,
                           const std::vector<int64_t>& image_sizes, int64_t pre_nms_top_n,
                           const std::vector<double>& weights, double clamp, double min_size) {
  const Candidates call =
      checked(logits, deltas, base_anchors, strides, offset, image_sizes, pre_nms_top_n, weights, clamp, min_size);
  Results results = allocated(call);
  THO_DISPATCH_V2(logits[0].scalar_type(), "rpn_candidates",
                  AT_WRAP([&] { compute_candidates<scalar_t>(call, results); }), AT_EXPAND(AT_FLOATING_TYPES),
                  ScalarType::Half, ScalarType::BFloat16);
  return results;
}

// What `rpn_best` is about: candidates and which of them non-maximum suppression has kept.
struct Best {
  Tensor boxes, logits, keep;
  int64_t images, total, count;
};

Best checked(const Tensor& boxes, const Tensor& logits, const Tensor& keep, int64_t post_nms_top_n) {
  check(logits.dim() == 2 && boxes.dim() == 3 && boxes.size(0) == logits.size(0) && boxes.size(1) == logits.size(1) &&
            boxes.size(2) == 4,
        "rpn_best: boxes and logits must be [N, K, 4] and [N, K], got ", ShapeOf{boxes}, " and ", ShapeOf{logits});
  const ScalarType type = boxes.scalar_type();
  check((type == ScalarType::Float || type == ScalarType::Double) && logits.scalar_type() == type,
        "rpn_best: boxes and logits must both be float32 or float64, got ", type, " and ", logits.scalar_type());
  check(keep.numel() == logits.numel() && keep.scalar_type() == ScalarType::Bool, "rpn_best: keep must be ",
        logits.numel(), " truth values, got ", ShapeOf{keep}, " ", keep.scalar_type());
  check(logits.size(1) <= std::numeric_limits<int32_t>::max(), "rpn_best: too many candidates: ", logits.size(1));
  check(post_nms_top_n > 0, "rpn_proposals: post_nms_top_n must be positive, got ", post_nms_top_n);
  return {torch::stable::contiguous(boxes),
          torch::stable::contiguous(logits),
          torch::stable::contiguous(keep),
          logits.size(0),
          logits.size(1),
          std::min(post_nms_top_n, logits.size(1))};
}

// One image's kept candidates that are usable, best first, into `count` places; what is left over becomes nothing.
template <typename T>
void take_best(const T* boxes, const T* logits, const bool* keep, int64_t total, int64_t count, T* best_boxes,
               T* best_logits, std::vector<Candidate<sort_key_t<T>>>& found,
               std::vector<Candidate<sort_key_t<T>>>& spare) {
  constexpr T kNothing = -std::numeric_limits<T>::infinity();
  found.clear();
  for (int64_t i = 0; i < total; ++i) {
    if (keep[i] && logits[i] > kNothing) found.push_back({sort_key(logits[i]), static_cast<uint32_t>(i)});
  }
  sort_best_first(found, spare);
  const auto taken = std::min(count, static_cast<int64_t>(found.size()));
  for (int64_t i = 0; i < taken; ++i) {
    std::copy_n(boxes + 4 * int64_t{found[i].anchor}, 4, best_boxes + 4 * i);
    best_logits[i] = logits[found[i].anchor];
  }
  std::fill(best_boxes + 4 * taken, best_boxes + 4 * count, T(0));
  std::fill(best_logits + taken, best_logits + count, kNothing);
}

template <typename T>
void compute_best(const Tensor& boxes, const Tensor& logits, const Tensor& keep, Tensor& best_boxes,
                  Tensor& best_logits) {
  const int64_t total = logits.size(1), count = best_logits.size(1);
  const T *box = boxes.const_data_ptr<T>(), *logit = logits.const_data_ptr<T>();
  const bool* kept = keep.const_data_ptr<bool>();
  T *to_box = best_boxes.mutable_data_ptr<T>(), *to_logit = best_logits.mutable_data_ptr<T>();
  parallel_for(0, logits.size(0), 4, [&](int64_t begin, int64_t end) {
    std::vector<Candidate<sort_key_t<T>>> found, spare;
    for (int64_t i = begin; i < end; ++i) {
      take_best(box + 4 * i * total, logit + i * total, kept + i * total, total, count, to_box + 4 * i * count,
                to_logit + i * count, found, spare);
    }
  });
}

std::tuple<Tensor, Tensor> rpn_best_cpu(const Tensor& boxes, const Tensor& logits, const Tensor& keep,
                                        int64_t post_nms_top_n) {
  const Best call = checked(boxes, logits, keep, post_nms_top_n);
  Tensor best_boxes = torch::stable::new_empty(call.boxes, {call.images, call.count, 4});
  Tensor best_logits = torch::stable::new_empty(call.boxes, {call.images, call.count});
  THO_DISPATCH_V2(call.boxes.scalar_type(), "rpn_best",
                  AT_WRAP([&] { compute_best<scalar_t>(call.boxes, call.logits, call.keep, best_boxes, best_logits); }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {best_boxes, best_logits};
}

// ---- CUDA

#ifdef MRCNN_CUDA
MapType map_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return MapType::kDouble;
    case ScalarType::Half:
      return MapType::kHalf;
    case ScalarType::BFloat16:
      return MapType::kBFloat16;
    default:
      return MapType::kFloat;
  }
}

Selection selection_of(const Candidates& call) {
  Selection selection{};
  selection.levels = static_cast<int>(call.levels());
  selection.images = call.images;
  selection.total = call.total;
  for (int l = 0; l < selection.levels; ++l) {
    const AnchorGrid& grid = call.grids[l];
    selection.logits[l] = described(call.logits[l]);
    selection.count[l] = grid.height * grid.width * grid.count;
    selection.chosen[l] = call.chosen[l];
    selection.first[l] = call.first[l];
    selection.anchors[l] = grid.count;
  }
  return selection;
}

Results rpn_candidates_cuda(const std::vector<Tensor>& logits, const std::vector<Tensor>& deltas,
                            const std::vector<double>& base_anchors, const std::vector<double>& strides, double offset,
                            const std::vector<int64_t>& image_sizes, int64_t pre_nms_top_n,
                            const std::vector<double>& weights, double clamp, double min_size) {
  const Candidates call =
      checked(logits, deltas, base_anchors, strides, offset, image_sizes, pre_nms_top_n, weights, clamp, min_size);
  const torch::stable::accelerator::DeviceGuard guard(logits[0].get_device_index());
  Results results = allocated(call);
  auto& [boxes, best, groups] = results;
  if (boxes.numel() == 0) return results;
  check(call.images * call.levels() <= 65535, "rpn_proposals: too many images: ", call.images);
  const MapType type = map_type(logits[0].scalar_type());
  const Selection selection = selection_of(call);
  const int64_t pieces = call.images * call.levels(), chosen = call.images * call.total;
  const Tensor& like = logits[0];
  Tensor histograms = torch::stable::new_zeros(like, {digit_passes(type) * pieces * kBins}, ScalarType::Int);
  Tensor sums = torch::stable::new_empty(like, {pieces * selection_blocks(selection) * 2}, ScalarType::Int);
  Tensor thresholds = torch::stable::new_empty(like, {pieces * 2}, ScalarType::Long);
  Tensor anchors = torch::stable::new_empty(like, {chosen}, ScalarType::Int);
  Tensor keys = torch::stable::new_empty(like, {chosen}, ScalarType::Long);
  const SelectionScratch scratch{
      reinterpret_cast<uint32_t*>(histograms.mutable_data_ptr<int32_t>()),
      reinterpret_cast<uint32_t*>(sums.mutable_data_ptr<int32_t>()), thresholds.mutable_data_ptr(),
      reinterpret_cast<uint32_t*>(anchors.mutable_data_ptr<int32_t>()), keys.mutable_data_ptr()};
  void* stream = current_stream(like);
  check_launch("rpn_proposals", launch_rpn_select(type, selection, scratch, stream));
  for (int64_t first = 0; first < call.images; first += kProposalImages) {
    const int64_t images = std::min<int64_t>(kProposalImages, call.images - first);
    ImageSizes sizes{};
    for (int64_t i = 0; i < images; ++i) {
      sizes.height[i] = static_cast<int32_t>(image_sizes[2 * (first + i)]);
      sizes.width[i] = static_cast<int32_t>(image_sizes[2 * (first + i) + 1]);
    }
    for (int l = 0; l < selection.levels; ++l) {
      if (call.chosen[l] == 0) continue;
      check_launch("rpn_proposals",
                   launch_rpn_decode(type, selection, l, described(call.deltas[l]), call.grids[l], call.decoding, sizes,
                                     first, images, scratch, boxes.mutable_data_ptr(), best.mutable_data_ptr(),
                                     groups.mutable_data_ptr<int64_t>(), stream));
    }
  }
  return results;
}

std::tuple<Tensor, Tensor> rpn_best_cuda(const Tensor& boxes, const Tensor& logits, const Tensor& keep,
                                         int64_t post_nms_top_n) {
  const Best call = checked(boxes, logits, keep, post_nms_top_n);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  Tensor best_boxes = torch::stable::new_empty(call.boxes, {call.images, call.count, 4});
  Tensor best_logits = torch::stable::new_empty(call.boxes, {call.images, call.count});
  if (best_logits.numel() == 0) return {best_boxes, best_logits};
  check(call.images <= 65535, "rpn_proposals: too many images: ", call.images);
  THO_DISPATCH_V2(call.boxes.scalar_type(), "rpn_best", AT_WRAP([&] {
                    check_launch(
                        "rpn_proposals",
                        launch_rpn_best(call.boxes.const_data_ptr<scalar_t>(), call.logits.const_data_ptr<scalar_t>(),
                                        call.keep.const_data_ptr<bool>(), call.images, call.total, call.count,
                                        best_boxes.mutable_data_ptr<scalar_t>(),
                                        best_logits.mutable_data_ptr<scalar_t>(), current_stream(boxes)));
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
  return {best_boxes, best_logits};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mrcnn, m) {
  m.def(
      "rpn_candidates(Tensor[] logits, Tensor[] deltas, float[] base_anchors, float[] strides, float offset, "
      "SymInt[] image_sizes, SymInt pre_nms_top_n, float[] weights, float clamp, float min_size) -> (Tensor, Tensor, "
      "Tensor)");
  m.def("rpn_best(Tensor boxes, Tensor logits, Tensor keep, SymInt post_nms_top_n) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CPU, m) {
  m.impl("rpn_candidates", TORCH_BOX(&rpn_candidates_cpu));
  m.impl("rpn_best", TORCH_BOX(&rpn_best_cpu));
}
#ifdef MRCNN_CUDA
STABLE_TORCH_LIBRARY_IMPL(mrcnn, CUDA, m) {
  m.impl("rpn_candidates", TORCH_BOX(&rpn_candidates_cuda));
  m.impl("rpn_best", TORCH_BOX(&rpn_best_cuda));
}
#endif

}  // namespace mrcnn
