// All kernels under AddressSanitizer and UndefinedBehaviorSanitizer. Arguments: nothing, or "plant" to write out of
// bounds, which they must report.
#include <cstdio>

#include "emulated.h"

extern "C" {

void run_write(int64_t, int);

void set_order(int order, unsigned seed) {
  emulator::machine().order = static_cast<emulator::Order>(order);
  emulator::machine().seed = seed;
}

}  // extern "C"

namespace emulated {

int failures = 0;

void expect(const char* what, const char* failure) {
  if (failure == nullptr) return;
  std::printf("%s: %s\n", what, failure);
  ++failures;
}

}  // namespace emulated

int main(int argc, char**) {
  if (argc > 1) {
    run_write(8, 8);
    return 0;
  }
  for (const int order : {0, 1, 2, 3}) {
    set_order(order, 7);
    for (const emulated::Run run : emulated::runs()) run();
  }
  std::printf(emulated::failures == 0 ? "clean: %zu operators\n" : "%zu operators, not clean\n",
              emulated::runs().size());
  return emulated::failures != 0;
}
