// Deformable convolution, emulated: everything but the products of matrices.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/deform_conv2d/deform_conv2d.h"

namespace {

// In the order of DeformConv's fields.
mrcnn::DeformConv shape_of(const int64_t* n) {
  const auto small = [&](int i) { return static_cast<int>(n[i]); };
  return {n[0],     n[1],      n[2],      small(3),  small(4),  small(5),  small(6), small(7), small(8),
          small(9), small(10), small(11), small(12), small(13), small(14), n[15],    n[16]};
}

mrcnn::Chunk chunk_of(const int64_t* n) {
  return {n[0], n[1], n[2], n[3]};
}

}  // namespace

extern "C" {

const char* deform_columns(int64_t type, const int64_t* shape, const int64_t* chunk, const void* input,
                           const void* offsets, const void* masks, void* columns) {
  return emulated::guarded([&] {
    return mrcnn::launch_gather_columns(static_cast<mrcnn::DeformType>(type), shape_of(shape), chunk_of(chunk), input,
                                        offsets, masks, columns, nullptr);
  });
}

const char* deform_point_gradients(int64_t type, const int64_t* shape, const int64_t* chunk, const void* input,
                                   const void* offsets, const void* masks, const void* column_gradients,
                                   void* offset_gradients, void* mask_gradients) {
  return emulated::guarded([&] {
    return mrcnn::launch_point_gradients(static_cast<mrcnn::DeformType>(type), shape_of(shape), chunk_of(chunk), input,
                                         offsets, masks, column_gradients, offset_gradients, mask_gradients, nullptr);
  });
}

const char* deform_input_gradient(int64_t type, const int64_t* shape, const int64_t* chunk, const void* offsets,
                                  const void* masks, const void* column_gradients, void* input_gradient) {
  const auto numbers = mrcnn::box_numbers(shape_of(shape), chunk_of(chunk));
  // On a boundary of 16 bytes, ending where the boxes do.
  const std::unique_ptr<void, void (*)(void*)> boxes(std::aligned_alloc(16, numbers * sizeof(int)), std::free);
  return emulated::guarded([&] {
    return mrcnn::launch_gather_gradient(static_cast<mrcnn::DeformType>(type), shape_of(shape), chunk_of(chunk),
                                         offsets, masks, column_gradients, static_cast<int*>(boxes.get()),
                                         input_gradient, nullptr);
  });
}

const char* deform_add_bias(int64_t type, int64_t rows, int64_t channels, const void* bias, void* output) {
  return emulated::guarded([&] {
    return mrcnn::launch_add_bias(static_cast<mrcnn::DeformType>(type), rows, channels, bias, output, nullptr);
  });
}

const char* deform_add_product(int64_t type, int64_t count, const void* product, void* sums) {
  return emulated::guarded(
      [&] { return mrcnn::launch_add_product(static_cast<mrcnn::DeformType>(type), count, product, sums, nullptr); });
}

}  // extern "C"

namespace {

void run_deform(int64_t type, size_t bytes, int64_t channels, int64_t groups, int64_t offset_groups) {
  const int64_t images = 2, height = 5, width = 9, taps = 4;  // a window of 2 x 2, padded by 1: 6 x 10 places
  const int64_t shape[] = {images, channels, groups, height, width, 6,      10,           2, 2, 1,
                           1,      1,        1,      1,      1,     groups, offset_groups};
  const int64_t plane = 60, points = offset_groups * taps * plane;
  const size_t sum_bytes = type == 1 ? 8 : 4;
  std::vector<double> wide(2 * images * points);
  std::vector<float> narrow(wide.size());
  for (size_t i = 0; i < wide.size(); ++i) {
    wide[i] = static_cast<double>(i * 7 % 23) / 4 - 2.5;
    if (i % 31 == 0) wide[i] = i % 2 == 0 ? NAN : 1e30;
    if (i % 37 == 0) wide[i] = -INFINITY;
    narrow[i] = static_cast<float>(wide[i]);
  }
  const void* offsets = type == 1 ? static_cast<const void*>(wide.data()) : narrow.data();
  using Bytes = std::vector<unsigned char>;
  const Bytes masks(images * points * sum_bytes), input(images * height * width * channels * bytes);
  Bytes offset_gradients(2 * images * points * sum_bytes), mask_gradients(images * points * sum_bytes);
  Bytes input_gradient(images * height * width * channels * sum_bytes);
  const int64_t whole[] = {0, images, 0, plane}, part[] = {1, 1, 13, 40};
  for (const int64_t* chunk : {whole, part}) {
    Bytes columns(chunk[1] * chunk[3] * taps * channels * bytes);
    emulated::expect("columns",
                     deform_columns(type, shape, chunk, input.data(), offsets, masks.data(), columns.data()));
    emulated::expect("points", deform_point_gradients(type, shape, chunk, input.data(), offsets, nullptr,
                                                      columns.data(), offset_gradients.data(), mask_gradients.data()));
    emulated::expect("input", deform_input_gradient(type, shape, chunk, offsets, masks.data(), columns.data(),
                                                    input_gradient.data()));
  }
  Bytes output(5 * channels * bytes), sums(channels * sum_bytes);
  emulated::expect("bias", deform_add_bias(type, 5, channels, sums.data(), output.data()));
  emulated::expect("product", deform_add_product(type, channels, output.data(), sums.data()));
}

void run() {
  run_deform(0, 4, 8, 2, 1);
  run_deform(0, 4, 6, 2, 3);
  run_deform(1, 8, 3, 1, 1);
  run_deform(2, 2, 16, 1, 2);
  run_deform(2, 2, 3, 1, 1);
  run_deform(3, 2, 264, 1, 1);
}

const emulated::Sanitized sanitized(run);

}  // namespace
