// A 3x3 convolution by Winograd's minimal filtering, F(2x2, 3x3) in the words of "Fast Algorithms for Convolutional
// Neural Networks" (Lavin and Gray, 2016): four neighbouring outputs of a channel take 16 multiplications for each
// channel of the input in place of 36.
//
//   tile   d    4 x 4 pixels of the input, each tile two pixels after the one before it
//   V = B' d B  16 points of a tile, by sums alone           B' = 1  0 -1  0     G =  1    0   0     A' = 1  1  1  0
//   U = G g G'  16 points of a filter                             0  1  1  0         1/2  1/2 1/2         0  1 -1 -1
//   M = sum over channels of V * U, point by point                0 -1  1  0         1/2 -1/2 1/2
//   Y = A' M A  2 x 2 pixels of the output                        0  1  0 -1          0    0   1
//
// The sums over channels are 16 products of matrices, tiles x channels by channels x outputs. A block of tiles is
// transformed into a scratch that stays in the second level of the cache, and multiplied by one panel of outputs after
// the other; what comes out of a panel goes back into pixels before the next one begins.
//
// No include guard: conv3x3.cpp includes this file once for each width of vectors, within a namespace that says
//   Number              float or double
//   Vector, kLanes      numbers side by side, and how many
//   kRows               tiles multiplied at a time, so many that 2 kRows + 3 vectors fill the registers
//   broadcast(a)        a in every lane
//   fused(a, b, c)      a * b + c
// Every number is summed in the order of the channels, whatever the vectors, blocks and threads: all processors with
// fused multiply-adds give the same bits.

constexpr int kPanel = 2 * kLanes;                      // outputs that are computed together
constexpr int kBlock = kTilesPerBlock / kRows * kRows;  // tiles, likewise

inline Vector load(const Number* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void store(Number* to, Vector vector) {
  std::memcpy(to, &vector, sizeof vector);
}

// Of a vector of which only `count` lanes are in memory; a call of memcpy for each whole one would cost more than its
// use.
inline Vector load_some(const Number* from, int64_t count) {
  if (count == kLanes) return load(from);
  Vector vector{};
  std::memcpy(&vector, from, count * sizeof(Number));
  return vector;
}

inline void store_some(Number* to, Vector vector, int64_t count) {
  if (count == kLanes) {
    store(to, vector);
  } else {
    std::memcpy(to, &vector, count * sizeof(Number));
  }
}

inline int64_t rounded_up(int64_t count, int64_t step) {
  return (count + step - 1) / step * step;
}

// A block's rows in V. The room at the end keeps rows of a power of two from sharing their place in the cache.
inline int64_t row_length(const Conv3x3& conv) {
  return rounded_up(conv.channels, kLanes) + 16;
}

struct Scratch {
  std::vector<Number> tiles, products, zeros;

  explicit Scratch(const Conv3x3& conv)
      : tiles(kPoints * kBlock * row_length(conv)),
        products(kPoints * kBlock * kPanel),
        zeros(rounded_up(conv.channels, kLanes)) {}
};

// ---- filters

// U of one panel, [point, channel, output]; outputs that there are not are zero.
inline void transform_filters(const Conv3x3& conv, const Number* weight, const int64_t* strides, int64_t panel,
                              Number* to) {
  const int64_t first = panel * kPanel, outputs = std::min<int64_t>(kPanel, conv.outputs - first);
  const int64_t point_stride = conv.channels * kPanel;
  Number taps[9][kPanel] = {};
  for (int64_t c = 0; c < conv.channels; ++c, to += kPanel) {
    for (int64_t n = 0; n < outputs; ++n) {
      const Number* filter = weight + (first + n) * strides[0] + c * strides[1];
      for (int tap = 0; tap < 9; ++tap) taps[tap][n] = filter[tap / 3 * strides[2] + tap % 3 * strides[3]];
    }
    for (int lane = 0; lane < kPanel; lane += kLanes) {
      Vector half[4][3];  // G g
      for (int x = 0; x < 3; ++x) {
        const Vector top = load(taps[x] + lane), middle = load(taps[3 + x] + lane), bottom = load(taps[6 + x] + lane);
        half[0][x] = top;
        half[1][x] = (top + bottom + middle) * Number(0.5);
        half[2][x] = (top + bottom - middle) * Number(0.5);
        half[3][x] = bottom;
      }
      for (int y = 0; y < 4; ++y) {
        const Vector left = half[y][0], middle = half[y][1], right = half[y][2];
        Number* point = to + 4 * y * point_stride + lane;
        store(point, left);
        store(point + point_stride, (left + right + middle) * Number(0.5));
        store(point + 2 * point_stride, (left + right - middle) * Number(0.5));
        store(point + 3 * point_stride, right);
      }
    }
  }
}

// ---- tiles

// V of some channels of one tile.
inline void transform_lanes(const Vector* d, Number* to, int64_t point_stride) {
  Vector half[16];  // B' d
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    half[x] = d[x] - d[8 + x];
    half[4 + x] = d[4 + x] + d[8 + x];
    half[8 + x] = d[8 + x] - d[4 + x];
    half[12 + x] = d[4 + x] - d[12 + x];
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y, to += 4 * point_stride) {
    const Vector* row = half + 4 * y;
    store(to, row[0] - row[2]);
    store(to + point_stride, row[1] + row[2]);
    store(to + 2 * point_stride, row[2] - row[1]);
    store(to + 3 * point_stride, row[1] - row[3]);
  }
}

inline void transform_tile(const Conv3x3& conv, const Number* input, int64_t tile, const Number* zeros, Number* to) {
  const int64_t x = tile % conv.tiles_x * 2, y = tile / conv.tiles_x % conv.tiles_y * 2;
  input += tile / (conv.tiles_x * conv.tiles_y) * conv.height * conv.width * conv.channels;
  const Number* pixels[16];  // a row and a column of zeros surround the image
  for (int p = 0; p < 16; ++p) {
    const int64_t row = y + p / 4 - 1, column = x + p % 4 - 1;
    const bool inside = row >= 0 && row < conv.height && column >= 0 && column < conv.width;
    pixels[p] = inside ? input + (row * conv.width + column) * conv.channels : zeros;
  }
  const int64_t point_stride = kBlock * row_length(conv);
  Vector d[16];
  int64_t c = 0;
  for (; c + kLanes <= conv.channels; c += kLanes) {
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p) d[p] = load(pixels[p] + c);
    transform_lanes(d, to + c, point_stride);
  }
  if (c < conv.channels) {
    for (int p = 0; p < 16; ++p) d[p] = load_some(pixels[p] + c, conv.channels - c);
    transform_lanes(d, to + c, point_stride);
  }
}

// ---- products

// M of kRows tiles and one panel, at one point.
inline void multiply(const Number* tiles, int64_t row_stride, const Number* filters, int64_t channels,
                     Number* products) {
  Vector sums[kRows][2] = {};
  for (int64_t c = 0; c < channels; ++c, ++tiles, filters += kPanel) {
    const Vector left = load(filters), right = load(filters + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vector value = broadcast(tiles[r * row_stride]);
      sums[r][0] = fused(value, left, sums[r][0]);
      sums[r][1] = fused(value, right, sums[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r, products += kPanel) {
    store(products, sums[r][0]);
    store(products + kLanes, sums[r][1]);
  }
}

// ---- pixels

// Y of one tile and one panel, with what is added to it and ReLU; pixels beyond the image are left out.
inline void finish_tile(const Conv3x3& conv, const Number* products, int64_t tile, int64_t panel,
                        const Added<Number>& added, Number* output) {
  const int64_t x = tile % conv.tiles_x * 2, y = tile / conv.tiles_x % conv.tiles_y * 2;
  const int64_t image = tile / (conv.tiles_x * conv.tiles_y) * conv.height * conv.width;
  constexpr int64_t kPoint = kBlock * kPanel;
  for (int lane = 0; lane < kPanel; lane += kLanes) {
    const int64_t first = panel * kPanel + lane, outputs = std::min<int64_t>(kLanes, conv.outputs - first);
    if (outputs <= 0) return;
    Vector half[2][4];  // A' M
#pragma GCC unroll 4
    for (int column = 0; column < 4; ++column) {
      const Number* from = products + column * kPoint + lane;
      const Vector second = load(from + 4 * kPoint), third = load(from + 8 * kPoint);
      half[0][column] = load(from) + second + third;
      half[1][column] = second - third - load(from + 12 * kPoint);
    }
    const Vector shift = added.bias ? load_some(added.bias + first, outputs) : Vector{};
    for (int row = 0; row < 2 && y + row < conv.height; ++row) {
      const Vector* m = half[row];
      const Vector pixel[2] = {m[0] + m[1] + m[2] + shift, m[1] - m[2] - m[3] + shift};
      for (int column = 0; column < 2 && x + column < conv.width; ++column) {
        const int64_t at = (image + (y + row) * conv.width + x + column) * conv.outputs + first;
        Vector sum = pixel[column];
        if (added.shortcut) sum += load_some(added.shortcut + at, outputs);
        if (conv.relu) sum = sum < Number(0) ? Vector{} : sum;  // a NaN stays one
        store_some(output + at, sum, outputs);
      }
    }
  }
}

// ---- a block

// The panels [first_panel, last_panel) of one block of tiles.
inline void convolve_block(const Conv3x3& conv, const Number* input, const Number* filters, const Added<Number>& added,
                           int64_t block, int64_t first_panel, int64_t last_panel, Scratch& scratch, Number* output) {
  const int64_t row_stride = row_length(conv), first = block * kBlock;
  const int64_t tiles = std::min<int64_t>(kBlock, conv.tiles() - first);
  for (int64_t t = 0; t < tiles; ++t) {
    transform_tile(conv, input, first + t, scratch.zeros.data(), scratch.tiles.data() + t * row_stride);
  }
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const Number* point = filters + panel * kPoints * conv.channels * kPanel;
    for (int p = 0; p < kPoints; ++p, point += conv.channels * kPanel) {
      for (int64_t t = 0; t < tiles; t += kRows) {
        multiply(scratch.tiles.data() + (p * kBlock + t) * row_stride, row_stride, point, conv.channels,
                 scratch.products.data() + (p * kBlock + t) * kPanel);
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      finish_tile(conv, scratch.products.data() + t * kPanel, first + t, panel, added, output);
    }
  }
}

inline void convolve(const Conv3x3& conv, const Number* input, const Number* weight, const int64_t* strides,
                     const Added<Number>& added, Number* output) {
  const int64_t panels = (conv.outputs + kPanel - 1) / kPanel, blocks = (conv.tiles() + kBlock - 1) / kBlock;
  const int64_t panel_size = kPoints * conv.channels * kPanel;
  const Buffer<Number> filters(panels * panel_size);
  parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      transform_filters(conv, weight, strides, panel, filters.get() + panel * panel_size);
    }
  });
  // A small map has fewer blocks than there are threads: then several share a block, each with panels of its own.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t shares = std::clamp<int64_t>(2 * threads / blocks, 1, panels);
  std::atomic<int64_t> next{0};
  parallel_for(0, std::min(blocks * shares, threads), 1, [&](int64_t, int64_t) {
    Scratch scratch(conv);
    for (int64_t piece = next++; piece < blocks * shares; piece = next++) {
      const int64_t share = piece % shares;
      convolve_block(conv, input, filters.get(), added, piece / shares, panels * share / shares,
                     panels * (share + 1) / shares, scratch, output);
    }
  });
}
