#pragma once
// What every <op>.cpp beside this needs: the emulator, launches whose faults come back as words, and a place in the run
// under AddressSanitizer.
#include "cuda_emulator.h"
// The emulator must come first: it defines what CUDA's own headers would.
#include <memory>
#include <vector>

namespace emulated {

// Turns what an emulated launch throws into text, as a launcher's own complaints are.
template <typename Launch>
const char* guarded(const Launch& launch) {
  static std::string message;
  try {
    return launch();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

// Counts and prints a launch that failed.
void expect(const char* what, const char* failure);

// Runs that AddressSanitizer and UndefinedBehaviorSanitizer watch, in every order of the threads. Their buffers end
// exactly where the data does; they judge accesses, values are compared with the CPU's in the test_<op>.py files.
using Run = void (*)();
inline std::vector<Run>& runs() {
  static std::vector<Run> all;
  return all;
}
struct Sanitized {
  explicit Sanitized(Run run) { runs().push_back(run); }
};

}  // namespace emulated
