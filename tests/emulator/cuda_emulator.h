#pragma once
// CUDA on the CPU, for tests: a .cu file of ours, compiled by g++ with MRCNN_EMULATOR, includes this instead of CUDA's
// own headers. One fiber per CUDA thread, blocks one after the other, on one operating system thread - so
// AddressSanitizer sees every access of a kernel, and the following are errors instead of undefined behaviour:
//
//   - a barrier that some threads of a block never reach, or reach after others have returned
//   - a warp operation whose mask lacks a lane that calls it, names one that never comes, or differs between lanes
//   - a shuffle from a lane outside of the mask, a launch no device would take
//
// Threads run between barriers in one of several orders, so a missing barrier gives different results. Dynamic shared
// memory is filled with 0xff before each block. Not seen: races between blocks, memory fences, textures, tensor cores.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __constant__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulator {

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

// In which order the threads of a block run: all of them up to their next barrier or warp operation, in turn, or -
// eager - the first ones as far as they get before the next ones do anything.
enum class Order { kForward, kBackward, kShuffled, kEager };

struct Index {
  unsigned x, y, z;
};

// One CUDA thread: a stack of its own and where it was left.
struct Fiber {
  Index index;
  unsigned number;
  State state;
  uint64_t meeting;  // of the warp, that it waits for
  void* stack;
  ucontext_t context;
  void* fake_stack;  // AddressSanitizer's
};

// Where the lanes of a warp meet. The values of the last meeting stay until the same lanes meet again.
struct Warp {
  uint32_t arrived = 0, mask = 0, last_mask = 0;
  uint64_t meetings = 0;
  uint64_t values[32] = {}, last_values[32] = {};
};

struct Machine {
  Order order = Order::kForward;
  unsigned seed = 1;
  dim3 grid, block;
  Index block_index = {};
  unsigned alive = 0, at_barrier = 0;
  int votes_or = 0, votes_and = 1, votes_count = 0;
  int last_or = 0, last_and = 0, last_count = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<void*> free_stacks;
  std::vector<unsigned char> shared;
  Fiber* current = nullptr;
  ucontext_t context;  // of the scheduler
  const void* stack = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::string error;
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

constexpr size_t kStackSize = 128 * 1024;

[[noreturn]] inline void fail(const std::string& what) {
  const Index& b = machine().block_index;
  throw std::runtime_error("emulator: " + what + " [block " + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " +
                           std::to_string(b.z) + "]");
}

// AddressSanitizer must be told of every change of stacks.
inline void announce_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* to,
                            [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, to, size);
#endif
}

inline void announce_arrival([[maybe_unused]] void* saved, [[maybe_unused]] const void** from,
                             [[maybe_unused]] size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, from, size);
#endif
}

// Leaves the current fiber until the scheduler resumes it.
inline void yield() {
  Machine& m = machine();
  Fiber& self = *m.current;
  announce_switch(self.state == State::kDone ? nullptr : &self.fake_stack, m.stack, m.stack_size);
  swapcontext(&self.context, &m.context);
  announce_arrival(self.fake_stack, nullptr, nullptr);
}

inline void run_fiber() {
  Machine& m = machine();
  announce_arrival(nullptr, &m.stack, &m.stack_size);
  try {
    (*m.kernel)();
  } catch (const std::exception& error) {
    if (m.error.empty()) m.error = error.what();
  }
  m.current->state = State::kDone;
  yield();
}

inline void resume(Fiber& fiber) {
  Machine& m = machine();
  m.current = &fiber;
  if (fiber.stack == nullptr) {
    if (m.free_stacks.empty()) {
      void* memory = mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) fail("no memory for a stack");
      m.free_stacks.push_back(memory);
    }
    fiber.stack = m.free_stacks.back();
    m.free_stacks.pop_back();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackSize;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  announce_switch(&m.fake_stack, fiber.stack, kStackSize);
  swapcontext(&m.context, &fiber.context);
  announce_arrival(m.fake_stack, nullptr, nullptr);
  if (fiber.state == State::kDone) {
    m.free_stacks.push_back(fiber.stack);
    fiber.stack = nullptr;
    --m.alive;
  }
}

// After an error the stacks of fibers that are still under way are given up with whatever lies on them.
inline void abandon() {
  Machine& m = machine();
  for (Fiber& fiber : m.fibers) {
    if (fiber.stack != nullptr) munmap(fiber.stack, kStackSize);
    fiber.stack = nullptr;
  }
}

inline void open_barrier() {
  Machine& m = machine();
  if (m.alive != m.fibers.size()) fail("a barrier after some threads of the block have returned");
  m.last_or = m.votes_or;
  m.last_and = m.votes_and;
  m.last_count = m.votes_count;
  m.votes_or = m.votes_count = 0;
  m.votes_and = 1;
  m.at_barrier = 0;
  for (Fiber& fiber : m.fibers) {
    if (fiber.state == State::kAtBarrier) fiber.state = State::kReady;
  }
}

inline void run_block() {
  Machine& m = machine();
  const unsigned count = static_cast<unsigned>(m.fibers.size());
  m.alive = count;
  m.at_barrier = 0;
  m.votes_or = m.votes_count = 0;
  m.votes_and = 1;
  std::fill(m.shared.begin(), m.shared.end(), static_cast<unsigned char>(0xff));
  std::fill(m.warps.begin(), m.warps.end(), Warp());
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (m.order == Order::kBackward) std::reverse(order.begin(), order.end());
  if (m.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), std::mt19937(m.seed));
  const bool eager = m.order == Order::kEager;
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber.number = i;
    fiber.index = {i % m.block.x, i / m.block.x % m.block.y, i / (m.block.x * m.block.y)};
    fiber.state = State::kReady;
    fiber.stack = nullptr;
  }
  while (m.alive > 0) {
    bool progress = false;
    for (const unsigned i : order) {
      Fiber& fiber = m.fibers[i];
      if (fiber.state == State::kAtWarp && m.warps[i / 32].meetings != fiber.meeting) fiber.state = State::kReady;
      if (fiber.state != State::kReady) continue;
      progress = true;
      resume(fiber);
      if (!m.error.empty()) fail(std::exchange(m.error, ""));
      if (eager) break;
    }
    if (m.alive > 0 && m.at_barrier == m.alive) {
      open_barrier();
    } else if (!progress && m.alive > 0) {
      fail("deadlock: a barrier or a warp operation waits for threads that never come");
    }
  }
}

template <typename Kernel>
void launch(dim3 grid, dim3 block, size_t shared_bytes, const Kernel& kernel) {
  Machine& m = machine();
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) fail("no device takes such a block");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    fail("no device takes such a grid");
  if (shared_bytes > 48 * 1024) fail("more dynamic shared memory than every device gives");
  m.grid = grid;
  m.block = block;
  m.fibers.resize(threads);
  m.warps.resize((threads + 31) / 32);
  m.shared.resize(shared_bytes);
  m.shared.shrink_to_fit();  // so that AddressSanitizer knows where it ends
  const std::function<void()> body = kernel;
  m.kernel = &body;
  try {
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          m.block_index = {x, y, z};
          run_block();
        }
      }
    }
  } catch (...) {
    abandon();
    throw;
  }
}

inline void* dynamic_shared() {
  return machine().shared.data();
}

inline void wait_at_barrier(int vote) {
  Machine& m = machine();
  m.votes_or |= vote != 0;
  m.votes_and &= vote != 0;
  m.votes_count += vote != 0;
  ++m.at_barrier;
  m.current->state = State::kAtBarrier;
  yield();
}

inline unsigned lane() {
  return machine().current->number % 32;
}

// All lanes of `mask` bring a value; returns the warp with everyone's.
inline const Warp& meet(uint32_t mask, uint64_t value) {
  Machine& m = machine();
  Warp& warp = m.warps[m.current->number / 32];
  if ((mask >> lane() & 1) == 0) throw std::runtime_error("a warp mask lacks the calling lane");
  if (warp.arrived == 0) warp.mask = mask;
  if (warp.mask != mask) throw std::runtime_error("lanes of one warp operation disagree on the mask");
  warp.values[lane()] = value;
  warp.arrived |= 1u << lane();
  if (warp.arrived == warp.mask) {
    std::copy(warp.values, warp.values + 32, warp.last_values);
    warp.last_mask = warp.mask;
    warp.arrived = 0;
    ++warp.meetings;
  } else {
    m.current->meeting = warp.meetings;
    m.current->state = State::kAtWarp;
    yield();
  }
  return warp;
}

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most eight bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  return bits;
}

template <typename T>
T shuffle(uint32_t mask, T value, unsigned source) {
  const Warp& warp = meet(mask, to_bits(value));
  if ((warp.last_mask >> source & 1) == 0) throw std::runtime_error("a shuffle reads a lane outside of the mask");
  T result;
  std::memcpy(&result, &warp.last_values[source], sizeof(result));
  return result;
}

}  // namespace emulator

#define threadIdx (emulator::machine().current->index)
#define blockIdx (emulator::machine().block_index)
#define blockDim (emulator::machine().block)
#define gridDim (emulator::machine().grid)

inline void __syncthreads() {
  emulator::wait_at_barrier(0);
}
inline int __syncthreads_or(int vote) {
  emulator::wait_at_barrier(vote);
  return emulator::machine().last_or;
}
inline int __syncthreads_and(int vote) {
  emulator::wait_at_barrier(vote);
  return emulator::machine().last_and;
}
inline int __syncthreads_count(int vote) {
  emulator::wait_at_barrier(vote);
  return emulator::machine().last_count;
}
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  emulator::meet(mask, 0);
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return emulator::shuffle(mask, value, static_cast<unsigned>(source) % 32);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  return emulator::shuffle(mask, value, emulator::lane() ^ static_cast<unsigned>(bits));
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance) {
  const unsigned lane = emulator::lane();
  return emulator::shuffle(mask, value, lane + distance < 32 ? lane + distance : lane);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance) {
  const unsigned lane = emulator::lane();
  return emulator::shuffle(mask, value, lane >= distance ? lane - distance : lane);
}
inline uint32_t __ballot_sync(uint32_t mask, int vote) {
  const emulator::Warp& warp = emulator::meet(mask, vote != 0);
  uint32_t votes = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if ((warp.last_mask >> i & 1) != 0 && warp.last_values[i] != 0) votes |= 1u << i;
  }
  return votes;
}
inline int __any_sync(uint32_t mask, int vote) {
  return __ballot_sync(mask, vote) != 0;
}
inline int __all_sync(uint32_t mask, int vote) {
  return __ballot_sync(mask, vote) == mask;
}

inline int __popc(uint32_t bits) {
  return __builtin_popcount(bits);
}
inline int __popcll(uint64_t bits) {
  return __builtin_popcountll(bits);
}
inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline int __ffsll(long long bits) {
  return __builtin_ffsll(bits);
}
inline int __clz(int bits) {
  return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits));
}

// Blocks and fibers share one operating system thread, so plain reads and writes are atomic.
template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = std::max(before, value);
  return before;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T before = *address;
  *address = std::min(before, value);
  return before;
}
template <typename T>
T atomicXor(T* address, T value) {
  const T before = *address;
  *address = before ^ value;
  return before;
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  const T before = *address;
  if (before == expected) *address = value;
  return before;
}

// Half precision: storage, and conversions that round to nearest even.
struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (value != value) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  float result;
  if (exponent == 31) {
    result = mantissa != 0 ? NAN : INFINITY;
  } else if (exponent == 0) {
    result = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    result = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return (value.bits & 0x8000) != 0 ? -result : result;
}

inline __half __float2half_rn(float value) {
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const float size = std::fabs(value);
  if (value != value) return {0x7fff};
  if (size >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};
  // In units of the last place, which are the same for all numbers below 2^-14.
  int exponent = size > 0 ? std::ilogb(size) : -14;
  exponent = std::max(exponent, -14);
  const auto units =
      static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));  // 2048 carries into the exponent
  return {static_cast<uint16_t>(sign | (((exponent + 14) << 10) + units))};
}
