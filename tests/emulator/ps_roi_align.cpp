// Position-sensitive RoIAlign, emulated.
#include "emulated.h"
// The emulator must come first.
#include "position_sensitive.h"

extern "C" {

const char* ps_roi_align(int64_t backward, int64_t type, const int64_t* sizes, double scale, void* map,
                         const void* regions, void* pooled) {
  return emulated::position_sensitive<mrcnn::Bins::kSampled>(backward, type, sizes, scale, map, regions, pooled);
}

}  // extern "C"

namespace {

void run() {
  emulated::run_position_sensitive(ps_roi_align);
}

const emulated::Sanitized sanitized(run);

}  // namespace
