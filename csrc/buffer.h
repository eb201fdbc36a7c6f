#pragma once
#include <algorithm>
#include <cstdint>
#include <new>

namespace mrcnn {

// Memory on a cache line's boundary, where BLAS computes the same bits whatever the allocator did before.
template <typename A>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<A*>(::operator new(std::max<int64_t>(count, 1) * sizeof(A), kLine))) {}
  ~Buffer() { ::operator delete(data_, kLine); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  A* get() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  A* data_;
};

}  // namespace mrcnn
