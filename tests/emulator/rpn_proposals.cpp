// Proposals, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/rpn_proposals/rpn_proposals.h"

namespace {

// Scratch of exact size, dirty where the kernels must write before they read.
struct Scratch {
  std::vector<uint32_t> histograms, sums, anchors;
  std::vector<uint64_t> thresholds, keys;

  Scratch(mrcnn::MapType type, const mrcnn::Selection& selection)
      : histograms(mrcnn::digit_passes(type) * selection.images * selection.levels * mrcnn::kBins, 0),
        sums(selection.images * selection.levels * mrcnn::selection_blocks(selection) * 2, ~0u),
        anchors(selection.images * selection.total, ~0u),
        thresholds(selection.images * selection.levels * 2, ~uint64_t{0}),
        keys(selection.images * selection.total, ~uint64_t{0}) {}

  mrcnn::SelectionScratch pointers() {
    return {histograms.data(), sums.data(), thresholds.data(), anchors.data(), keys.data()};
  }
};

}  // namespace

extern "C" {

// Of each level the shape [A, H, W] and the stride of its anchors; corners of the base anchors of all levels; maps are
// contiguous, or channels last.
const char* rpn_candidates(int64_t type, int64_t levels, int64_t images, void** logits, void** deltas,
                           const int64_t* shapes, const double* strides, const double* corners, double offset,
                           int64_t channels_last, const int64_t* image_sizes, int64_t pre_nms_top_n,
                           const double* weights, double clamp, double min_size, void* boxes, void* best,
                           int64_t* groups) {
  const auto map_type = static_cast<mrcnn::MapType>(type);
  mrcnn::Selection selection{};
  mrcnn::Decoding decoding{{}, clamp, min_size};
  std::copy(weights, weights + 4, decoding.weights);
  mrcnn::ImageSizes sizes{};
  for (int64_t i = 0; i < images; ++i) {
    sizes.height[i] = static_cast<int32_t>(image_sizes[2 * i]);
    sizes.width[i] = static_cast<int32_t>(image_sizes[2 * i + 1]);
  }
  std::vector<mrcnn::LevelMap> delta_maps;
  std::vector<mrcnn::AnchorGrid> grids;
  selection.levels = static_cast<int>(levels);
  selection.images = images;
  for (int64_t l = 0; l < levels; ++l) {
    const int64_t anchors = shapes[3 * l], height = shapes[3 * l + 1], width = shapes[3 * l + 2];
    const int64_t cells = height * width;
    const auto map = [&](const void* data, int64_t channels) {
      return channels_last != 0 ? mrcnn::LevelMap{data, channels * cells, 1, channels}
                                : mrcnn::LevelMap{data, channels * cells, cells, 1};
    };
    selection.logits[l] = map(logits[l], anchors);
    delta_maps.push_back(map(deltas[l], 4 * anchors));
    selection.count[l] = anchors * cells;
    selection.chosen[l] = std::min(pre_nms_top_n, anchors * cells);
    selection.first[l] = selection.total;
    selection.anchors[l] = static_cast<int>(anchors);
    selection.total += selection.chosen[l];
    mrcnn::AnchorGrid grid{height, width, strides[2 * l], strides[2 * l + 1], offset, static_cast<int>(anchors), {}};
    std::copy(corners, corners + 4 * anchors, &grid.corners[0][0]);
    corners += 4 * anchors;
    grids.push_back(grid);
  }
  Scratch scratch(map_type, selection);
  return emulated::guarded([&] {
    const char* failure = mrcnn::launch_rpn_select(map_type, selection, scratch.pointers(), nullptr);
    for (int l = 0; failure == nullptr && l < levels; ++l) {
      if (selection.chosen[l] == 0) continue;
      failure = mrcnn::launch_rpn_decode(map_type, selection, l, delta_maps[l], grids[l], decoding, sizes, 0, images,
                                         scratch.pointers(), boxes, best, groups, nullptr);
    }
    return failure;
  });
}

const char* rpn_best(int64_t is_double, const void* boxes, const void* logits, const bool* keep, int64_t images,
                     int64_t total, int64_t count, void* best_boxes, void* best_logits) {
  return emulated::guarded([&] {
    if (is_double != 0) {
      return mrcnn::launch_rpn_best(static_cast<const double*>(boxes), static_cast<const double*>(logits), keep, images,
                                    total, count, static_cast<double*>(best_boxes), static_cast<double*>(best_logits),
                                    nullptr);
    }
    return mrcnn::launch_rpn_best(static_cast<const float*>(boxes), static_cast<const float*>(logits), keep, images,
                                  total, count, static_cast<float*>(best_boxes), static_cast<float*>(best_logits),
                                  nullptr);
  });
}

}  // extern "C"

namespace {

void run_one(int64_t pre_nms_top_n, int64_t channels_last) {
  const int64_t images = 2, shapes[] = {3, 41, 37, 3, 5, 4, 1, 1, 1}, image_sizes[] = {160, 150, 90, 150};
  const double strides[] = {4, 4, 32, 32, 64, 64}, weights[] = {1, 1, 1, 1};
  const double corners[] = {-8, -8, 8,   8,   -4, -8, 4,   8,   -8, -4, 8,   4,   -32, -32,
                            32, 32, -16, -32, 16, 32, -32, -16, 32, 16, -64, -64, 64,  64};
  std::mt19937 random(5);
  std::normal_distribution<float> value(0, 1);
  std::vector<std::vector<float>> maps;
  void *logits[3], *deltas[3];
  int64_t total = 0;
  for (int l = 0; l < 3; ++l) {
    const int64_t count = shapes[3 * l] * shapes[3 * l + 1] * shapes[3 * l + 2];
    for (const int64_t size : {images * count, images * 4 * count}) {
      maps.emplace_back(size);
      for (float& number : maps.back()) number = value(random);
    }
    logits[l] = maps[2 * l].data();
    deltas[l] = maps[2 * l + 1].data();
    total += std::min(pre_nms_top_n, count);
  }
  std::vector<float> boxes(images * total * 4), best(images * total);
  std::vector<int64_t> groups(images * total);
  emulated::expect("rpn_candidates",
                   rpn_candidates(0, 3, images, logits, deltas, shapes, strides, corners, 0.5, channels_last,
                                  image_sizes, pre_nms_top_n, weights, 4, 0, boxes.data(), best.data(), groups.data()));
  const auto keep = std::make_unique<bool[]>(images * total);
  for (int64_t i = 0; i < images * total; ++i) keep[i] = i % 3 != 0;
  const int64_t count = std::min<int64_t>(total, 70);
  std::vector<float> best_boxes(images * count * 4), best_logits(images * count);
  emulated::expect("rpn_best", rpn_best(0, boxes.data(), best.data(), keep.get(), images, total, count,
                                        best_boxes.data(), best_logits.data()));
}

void run() {
  for (const int64_t channels_last : {0, 1}) {
    for (const int64_t pre_nms_top_n : {1, 60, 300}) run_one(pre_nms_top_n, channels_last);
  }
}

const emulated::Sanitized sanitized(run);

}  // namespace
