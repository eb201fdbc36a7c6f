// The kernels of position_sensitive_cuda.h for bins of whole pixels.
#include "../ps_roi_align/position_sensitive_cuda.h"

namespace mrcnn {

template const char* launch_position_sensitive<Bins::kWhole>(ElementType, const PositionSensitiveCall&, const void*,
                                                             const void*, void*, void*);
template const char* launch_position_sensitive_backward<Bins::kWhole>(ElementType, const PositionSensitiveCall&,
                                                                      const void*, const void*, void*, void*);

}  // namespace mrcnn
