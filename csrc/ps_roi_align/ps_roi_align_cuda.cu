// The kernels of position_sensitive_cuda.h for bins of samples.
#include "position_sensitive_cuda.h"

namespace mrcnn {

template const char* launch_position_sensitive<Bins::kSampled>(ElementType, const PositionSensitiveCall&, const void*,
                                                               const void*, void*, void*);
template const char* launch_position_sensitive_backward<Bins::kSampled>(ElementType, const PositionSensitiveCall&,
                                                                        const void*, const void*, void*, void*);

}  // namespace mrcnn
