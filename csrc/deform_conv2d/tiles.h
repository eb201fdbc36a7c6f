#pragma once
// Deformable convolution on the CPU, a tile of the matrix of columns at a time, so that it stays in the cache.
//
// Forward, one piece of work is one tile: some pixels of an image, all of their channels. Backward, one piece is one
// slice of the channels in all images, so that no two threads add to one number; what the slices contribute to the
// points' gradients is kept apart and summed in order. Tiles and slices don't depend on the number of threads, and each
// product of matrices is made by the one thread that asks for it: every run gives the same bits.
#include <algorithm>
#include <cstring>
#include <vector>

#include "../buffer.h"
#include "columns.h"

namespace mrcnn {

// A matrix in somebody's memory, for BLAS.
inline Tensor matrix_on(const torch::stable::Device& device, ScalarType type, const void* data, int64_t rows,
                        int64_t columns, int64_t row_stride, int64_t column_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  return torch::stable::from_blob(const_cast<void*>(data), {sizes, 2}, {strides, 2}, device, type);
}

template <typename A>
Tensor matrix(const A* data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride = 1) {
  return matrix_on(torch::stable::Device(torch::headeronly::DeviceType::CPU),
                   std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float, data, rows, columns, row_stride,
                   column_stride);
}

// out = a b. The overload that writes into a given matrix is one that autocast leaves alone.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  StableIValue stack[] = {torch::stable::detail::from(a), torch::stable::detail::from(b),
                          torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // `out` once more, to be released
}

// Calls body(begin, end) for parts of [0, pieces), each within one thread: a lone piece is given company, since BLAS
// would divide its product among all threads and then give other bits for other numbers of them.
template <typename Body>
void for_pieces(int64_t pieces, const Body& body) {
  parallel_for(0, std::max<int64_t>(pieces, 2), 1, [&](int64_t begin, int64_t end) {
    if (begin < std::min(end, pieces)) body(begin, std::min(end, pieces));
  });
}

// Neighbouring channels that share their points and their group of weights.
struct Run {
  int64_t first, count, group, offset_group;
};

inline std::vector<Run> runs_of(const DeformConv& shape, int64_t longest) {
  std::vector<Run> runs;
  for (int64_t first = 0; first < shape.channels;) {
    const int64_t group = first / shape.group_channels(), offset_group = first / shape.offset_group_channels();
    const int64_t end =
        std::min((group + 1) * shape.group_channels(), (offset_group + 1) * shape.offset_group_channels());
    const int64_t count = std::min(end - first, longest);
    runs.push_back({first, count, group, offset_group});
    first += count;
  }
  return runs;
}

// A point of a tile, ready to be visited.
template <typename A>
struct Sample {
  bool near;  // the map
  Point<A> point;
  A mask;
  int64_t pixels[4];
  A weights[4];  // the mask among them
};

// The points of `count` pixels from `first` of one image and offset group, [count, taps].
template <typename A>
void find_samples(const DeformConv& shape, const A* offsets, const A* masks, int64_t image, int64_t offset_group,
                  int64_t first, int64_t count, std::vector<Sample<A>>& samples) {
  const int taps = static_cast<int>(shape.taps());
  const int64_t plane = shape.out_pixels(), group = image * shape.offset_groups + offset_group;
  const A* of_points = offsets + group * 2 * taps * plane;
  const A* of_masks = masks == nullptr ? nullptr : masks + group * taps * plane;
  samples.resize(count * taps);
  Sample<A>* sample = samples.data();
  for (int64_t p = first; p < first + count; ++p) {
    for (int tap = 0; tap < taps; ++tap, ++sample) {
      sample->near = point_at(shape, of_points, tap, p, sample->point);
      if (!sample->near) continue;
      sample->mask = of_masks == nullptr ? A(1) : of_masks[tap * plane + p];
      for (int corner = 0; corner < 4; ++corner) {
        sample->pixels[corner] = corner_pixel(shape, sample->point, corner);
        sample->weights[corner] = corner_weight(sample->point, corner) * sample->mask;
      }
    }
  }
}

// Pixels per tile, so that `bytes` for each of them stay in a core's own cache.
inline int64_t tile_of(int64_t bytes) {
  constexpr int64_t kCache = 640 << 10;
  return std::clamp<int64_t>(kCache / std::max<int64_t>(bytes, 1) / 16 * 16, 16, 256);
}

// The operands, channels last and in the type that sums are made in; weight is [out_channels, taps, group_channels].
template <typename A>
struct Operands {
  const A *input, *offsets, *masks, *weight;
};

// ---- forward

template <typename A>
void convolve(const DeformConv& shape, const Operands<A>& operands, const A* bias, bool channels_last, A* output) {
  const int64_t taps = shape.taps(), channels = shape.channels, depth = taps * shape.group_channels();
  const int64_t plane = shape.out_pixels(), out_channels = shape.out_channels, outs = out_channels / shape.groups;
  const int64_t tile = tile_of(taps * channels * sizeof(A)), tiles = (plane + tile - 1) / tile;
  const std::vector<Run> runs = runs_of(shape, channels);
  const CornerKernels<A> kernels = corner_kernels<A>();
  for_pieces(shape.images * tiles, [&](int64_t begin, int64_t end) {
    const Buffer<A> columns(tile * taps * channels);
    const std::vector<A> zeros(channels, A(0));  // stands in for pixels outside of the map
    std::vector<Sample<A>> samples;
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t image = piece / tiles, first = piece % tiles * tile, count = std::min(tile, plane - first);
      int64_t found = -1;
      for (const Run& run : runs) {
        if (run.offset_group != found) {
          find_samples(shape, operands.offsets, operands.masks, image, run.offset_group, first, count, samples);
          found = run.offset_group;
        }
        const A* map = operands.input + image * shape.pixels() * channels + run.first;
        A* column = columns.get() + run.group * count * depth + run.first - run.group * shape.group_channels();
        for (const Sample<A>& sample : samples) {
          if (sample.near) {
            const A* corners[4];
            for (int i = 0; i < 4; ++i) {
              corners[i] = sample.pixels[i] < 0 ? zeros.data() : map + sample.pixels[i] * channels;
            }
            kernels.mix(corners, sample.weights, run.count, column);
          } else {
            std::fill_n(column, run.count, A(0));
          }
          column += shape.group_channels();
        }
      }
      for (int64_t g = 0; g < shape.groups; ++g) {
        const A* weight = operands.weight + g * outs * depth;
        const A* rows = columns.get() + g * count * depth;
        if (channels_last) {
          A* out = output + (image * plane + first) * out_channels + g * outs;
          multiply(matrix(rows, count, depth, depth), matrix(weight, depth, outs, 1, depth),
                   matrix(out, count, outs, out_channels));
        } else {
          A* out = output + (image * out_channels + g * outs) * plane + first;
          multiply(matrix(weight, outs, depth, depth), matrix(rows, depth, count, 1, depth),
                   matrix(out, outs, count, plane));
        }
      }
      if (bias == nullptr) continue;
      if (channels_last) {
        A* out = output + (image * plane + first) * out_channels;
        for (int64_t p = 0; p < count; ++p, out += out_channels) {
          for (int64_t o = 0; o < out_channels; ++o) out[o] += bias[o];
        }
      } else {
        for (int64_t o = 0; o < out_channels; ++o) {
          A* out = output + (image * out_channels + o) * plane + first;
          for (int64_t p = 0; p < count; ++p) out[p] += bias[o];
        }
      }
    }
  });
}

// ---- backward

// What is wanted; null: not needed. Input and weight lie as among the operands, the others as their values.
template <typename A>
struct Gradients {
  A *input, *offsets, *masks, *weight;
};

constexpr int64_t kSlice = 32;  // channels of a piece of work

// Sums the slices' shares of the points' gradients, [runs, images, taps, pixels, (y, x, mask)], in their order.
template <typename A>
void sum_points(const DeformConv& shape, const std::vector<Run>& runs, const A* shares, const Gradients<A>& gradients) {
  const int64_t taps = shape.taps(), plane = shape.out_pixels(), numbers = 3 * plane;
  parallel_for(0, shape.images * shape.offset_groups * taps, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> sums(numbers);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / taps / shape.offset_groups, group = i / taps % shape.offset_groups, tap = i % taps;
      std::fill(sums.begin(), sums.end(), A(0));
      for (size_t r = 0; r < runs.size(); ++r) {
        if (runs[r].offset_group != group) continue;
        const A* share = shares + ((static_cast<int64_t>(r) * shape.images + image) * taps + tap) * numbers;
        for (int64_t k = 0; k < numbers; ++k) sums[k] += share[k];
      }
      const int64_t plane_of_tap = (image * shape.offset_groups + group) * taps + tap;
      for (int64_t p = 0; p < plane; ++p) {
        if (gradients.offsets != nullptr) {
          gradients.offsets[2 * plane_of_tap * plane + p] = sums[3 * p];
          gradients.offsets[(2 * plane_of_tap + 1) * plane + p] = sums[3 * p + 1];
        }
        if (gradients.masks != nullptr) gradients.masks[plane_of_tap * plane + p] = sums[3 * p + 2];
      }
    }
  });
}

// `output` is the gradient of the output, channels last.
template <typename A>
void spread_gradient(const DeformConv& shape, const Operands<A>& operands, const A* output,
                     const Gradients<A>& gradients) {
  const int64_t taps = shape.taps(), channels = shape.channels, depth = taps * shape.group_channels();
  const int64_t plane = shape.out_pixels(), out_channels = shape.out_channels, outs = out_channels / shape.groups;
  const bool for_points = gradients.offsets != nullptr || gradients.masks != nullptr;
  const bool for_columns = for_points || gradients.input != nullptr;
  const std::vector<Run> runs = runs_of(shape, kSlice);
  const CornerKernels<A> kernels = corner_kernels<A>();
  const auto pieces = static_cast<int64_t>(runs.size());
  const Buffer<A> shares(for_points ? pieces * shape.images * taps * plane * 3 : 0);
  for_pieces(pieces, [&](int64_t begin, int64_t end) {
    const int64_t widest = taps * std::min(kSlice, channels);
    const int64_t tile = tile_of(2 * widest * sizeof(A));
    const Buffer<A> columns(tile * widest), column_gradients(tile * widest), weight(outs * widest);
    const Buffer<A> weight_sums(outs * widest), weight_product(outs * widest);
    const std::vector<A> zeros(kSlice, A(0));  // stands in for pixels outside of the map
    std::vector<A> nobody(kSlice);             // gets what they would get
    std::vector<Sample<A>> samples;
    for (int64_t piece = begin; piece < end; ++piece) {
      const Run& run = runs[piece];
      const int64_t in_group = run.first - run.group * shape.group_channels(), width = taps * run.count;
      for (int64_t o = 0; o < outs; ++o) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const A* from = operands.weight + (run.group * outs + o) * depth + tap * shape.group_channels() + in_group;
          std::copy_n(from, run.count, weight.get() + o * width + tap * run.count);
        }
      }
      std::fill_n(weight_sums.get(), outs * width, A(0));
      for (int64_t image = 0; image < shape.images; ++image) {
        const A* map = operands.input + image * shape.pixels() * channels + run.first;
        A* map_gradient =
            gradients.input == nullptr ? nullptr : gradients.input + image * shape.pixels() * channels + run.first;
        for (int64_t p = 0; map_gradient != nullptr && p < shape.pixels(); ++p) {
          std::fill_n(map_gradient + p * channels, run.count, A(0));
        }
        for (int64_t first = 0; first < plane; first += tile) {
          const int64_t count = std::min(tile, plane - first);
          const A* sent = output + (image * plane + first) * out_channels + run.group * outs;
          find_samples(shape, operands.offsets, operands.masks, image, run.offset_group, first, count, samples);
          if (for_columns) {
            multiply(matrix(sent, count, outs, out_channels), matrix(weight.get(), outs, width, width),
                     matrix(column_gradients.get(), count, width, width));
          }
          A *column = columns.get(), *column_gradient = column_gradients.get();
          for (int64_t i = 0; i < count * taps; ++i, column += run.count, column_gradient += run.count) {
            const Sample<A>& sample = samples[i];
            PointGradient<A> moved{};
            if (!sample.near) {
              std::fill_n(column, run.count, A(0));
            } else {
              const A* corners[4];
              A* corner_gradients[4];
              for (int k = 0; k < 4; ++k) {
                const bool outside = sample.pixels[k] < 0;
                corners[k] = outside ? zeros.data() : map + sample.pixels[k] * channels;
                corner_gradients[k] =
                    outside || map_gradient == nullptr ? nobody.data() : map_gradient + sample.pixels[k] * channels;
              }
              if (for_columns) {
                A products[4];
                kernels.spread(corners, sample.weights, column_gradient, run.count, column, corner_gradients, products);
                moved = point_gradient(sample.point, sample.mask, products);
              } else {
                kernels.mix(corners, sample.weights, run.count, column);
              }
            }
            if (for_points) {
              const int64_t p = first + i / taps, tap = i % taps;
              A* share = shares.get() + (((piece * shape.images + image) * taps + tap) * plane + p) * 3;
              share[0] = moved.y;
              share[1] = moved.x;
              share[2] = moved.mask;
            }
          }
          if (gradients.weight != nullptr) {
            multiply(matrix(sent, outs, count, 1, out_channels), matrix(columns.get(), count, width, width),
                     matrix(weight_product.get(), outs, width, width));
            for (int64_t i = 0; i < outs * width; ++i) weight_sums.get()[i] += weight_product.get()[i];
          }
        }
      }
      for (int64_t o = 0; gradients.weight != nullptr && o < outs; ++o) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          A* to = gradients.weight + (run.group * outs + o) * depth + tap * shape.group_channels() + in_group;
          std::copy_n(weight_sums.get() + o * width + tap * run.count, run.count, to);
        }
      }
    }
  });
  if (for_points) sum_points(shape, runs, shares.get(), gradients);
}

// The sum over all pixels of the gradient of the output: of blocks first, then of the blocks, for precision and for
// the same order whatever the threads do.
template <typename A>
void sum_pixels(int64_t pixels, int64_t channels, const A* output, A* sums) {
  constexpr int64_t kBlock = 512;
  const int64_t blocks = (pixels + kBlock - 1) / kBlock;
  std::vector<A> of_blocks(blocks * channels, A(0));
  parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin * kBlock; p < std::min(end * kBlock, pixels); ++p) {
      A* sum = of_blocks.data() + p / kBlock * channels;
      for (int64_t c = 0; c < channels; ++c) sum[c] += output[p * channels + c];
    }
  });
  std::fill_n(sums, channels, A(0));
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t c = 0; c < channels; ++c) sums[c] += of_blocks[block * channels + c];
  }
}

}  // namespace mrcnn
