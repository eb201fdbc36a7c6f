#pragma once
// The only door to Torch's headers: tensors, checks with readable messages, dispatch, parallel loops, the CUDA stream.
// Everything here is Torch's stable ABI at TORCH_TARGET_VERSION, which setup.py sets.
#if defined(MRCNN_CUDA) && !defined(USE_CUDA)
#define USE_CUDA
#endif
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <vector>

// The name of it in older releases, of which 2.11 is the oldest that is supported.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

#ifdef MRCNN_CUDA
// Weak: a CPU-only Torch has no such function and must still be able to load the library.
#pragma weak aoti_torch_get_current_cuda_stream
#endif

namespace mrcnn {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;

// Prints a tensor's shape as "[3, 4]"; nothing is formatted unless a check fails.
struct ShapeOf {
  const Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& stream, const ShapeOf& shape) {
  stream << "[";
  for (int64_t d = 0; d < shape.tensor.dim(); ++d) stream << (d ? ", " : "") << shape.tensor.size(d);
  return stream << "]";
}

// Raises a RuntimeError in Python that reads as the parts one after another.
template <typename... Parts>
inline void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// The type that sums of a type are made in.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// True if memory runs channels first within a pixel, then x, y, image. Strides of dimensions of size one don't matter.
inline bool is_channels_last(const Tensor& image) {
  if (image.dim() != 4) return false;
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (image.size(d) != 1 && image.stride(d) != expected) return false;
    expected *= image.size(d);
  }
  return true;
}

// Maps are taken as they lie in memory: all channels last, or all contiguous; what differs from the first is copied. A
// map that is both (one channel, one pixel) counts as contiguous.
inline bool prefers_channels_last(const Tensor& map) {
  return is_channels_last(map) && !map.is_contiguous();
}

inline Tensor in_format(const Tensor& map, bool channels_last) {
  if (channels_last ? is_channels_last(map) : map.is_contiguous()) return map;
  return torch::stable::contiguous(map, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Asks for 2 MB pages under a large new CPU tensor. The first write to each page costs a call into the kernel, which
// for tens of megabytes in 4 KB pages takes longer than computing what is written.
inline void prefer_huge_pages(const Tensor& tensor) {
#ifdef __linux__
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t bytes = static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  if (!tensor.is_cpu() || bytes < 2 * kHugePage) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage,
                  last = (begin + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: failure is fine
#else
  (void)tensor;
#endif
}

// True if the kernels may use AVX2 with fused multiply-adds and half-precision conversions (every AVX2 processor has
// both). The library is compiled for any x86-64 processor, so this is found out where it runs. MRCNN_PLAIN_KERNELS=1
// says no, for tests of the plain kernels.
inline bool has_avx2() {
#ifdef __x86_64__
  static const bool found = [] {
    const char* plain = std::getenv("MRCNN_PLAIN_KERNELS");
    if (plain != nullptr && *plain == '1') return false;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }();
  return found;
#else
  return false;
#endif
}

// True if vectors of sixteen floats may be used too. MRCNN_AVX512=0 says no, for tests of the kernels for AVX2.
inline bool has_avx512() {
#ifdef __x86_64__
  static const bool found = [] {
    const char* wish = std::getenv("MRCNN_AVX512");
    return has_avx2() && __builtin_cpu_supports("avx512f") && (wish == nullptr || *wish != '0');
  }();
  return found;
#else
  return false;
#endif
}

// Calls body(piece, scratch) for each of [0, pieces). A thread takes the next piece whenever it is done with one, which
// keeps all of them busy where pieces differ in size. Which thread does a piece must not matter to what comes out.
template <typename Scratch, typename Body>
void for_each_piece(int64_t pieces, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(pieces, torch::stable::get_num_threads());
  parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    Scratch scratch;
    for (int64_t piece = next++; piece < pieces; piece = next++) body(piece, scratch);
  });
}

inline Tensor converted(const Tensor& tensor, ScalarType type) {
  return torch::stable::contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

#ifdef MRCNN_CUDA
inline void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream != nullptr, "this PyTorch was built without CUDA");
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

// Launchers return nullptr, or CUDA's own words for what went wrong.
inline void check_launch(const char* op, const char* failure) {
  check(failure == nullptr, op, ": CUDA error: ", failure == nullptr ? "" : failure);
}
#endif

}  // namespace mrcnn
